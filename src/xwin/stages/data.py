"""Conversations or prompts from the files people have: read, cleaned, split, every dropped row written down with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import MinLen

from xwin.data.formats import Makes
from xwin.run.artifacts import Artifact, Conversations, ConversationsRef
from xwin.stages._data import Cleaning, Source, prepare
from xwin.stages._split import SPLITS

if TYPE_CHECKING:
    from xwin.stages._context import Context


class ConversationSource(Source):
    """Files of conversations, or an earlier stage."""

    path: ConversationsRef
    """JSONL, JSON, CSV or Parquet, packed or not, in any known format; or a stage that makes conversations."""


class Data(Cleaning):
    """Reads conversations or prompts of any known format, drops what is broken, repeated or leaked, and splits by prompt."""

    sources: Annotated[tuple[ConversationSource, ...], MinLen(1)]
    """What is read, in this order."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = dict.fromkeys(SPLITS, Conversations)

    def run(self, ctx: Context) -> None:
        """Writes the splits, rejected.jsonl and card.json."""
        prepare(ctx, self, Makes.CONVERSATIONS)
