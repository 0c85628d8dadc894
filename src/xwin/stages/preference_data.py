"""Preferences from the files people have: read, cleaned, split, every dropped row written down with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import MinLen

from xwin.data.formats import Makes
from xwin.run.artifacts import Artifact, Preferences, PreferencesRef
from xwin.stages._data import Cleaning, Source, prepare
from xwin.stages._split import SPLITS

if TYPE_CHECKING:
    from xwin.stages._context import Context


class PreferenceSource(Source):
    """Files of preferences, or an earlier stage."""

    path: PreferencesRef
    """JSONL, JSON, CSV or Parquet, packed or not, in any known format; or a stage that makes preferences."""


class PreferenceData(Cleaning):
    """Reads preferences of any known format, drops what is broken, repeated or leaked, and splits by prompt."""

    sources: Annotated[tuple[PreferenceSource, ...], MinLen(1)]
    """What is read, in this order."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = dict.fromkeys(SPLITS, Preferences)

    def run(self, ctx: Context) -> None:
        """Writes the splits, rejected.jsonl and card.json."""
        prepare(ctx, self, Makes.PREFERENCES)
