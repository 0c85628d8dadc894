"""Samples of a training stage: rows rendered once, kept in the cache under a digest of everything they depend on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any

from xwin.data.batch import Sample
from xwin.data.budget import fitted
from xwin.data.conversation import Conversation, Preference
from xwin.data.sources import Rows
from xwin.data.store import Pool, SampleStore, stored
from xwin.data.template import Template, answers
from xwin.errors import DataError
from xwin.models.hub import cache_folder

if TYPE_CHECKING:
    from xwin.stages._context import Context
    from xwin.stages._training import RowTraining

REVISION = 1
"""Of how rows become samples; raised when the same rows give other samples."""


@dataclass(frozen=True)
class Source:
    """Rows, and how they become samples."""

    rows: Rows[Any]
    made: str
    """Names what `make` does: samples made in another way are others."""
    make: Callable[[Iterable[Any]], Iterable[Sample]]
    """One sample per row, or those of a bond side by side, in order of the rows."""


def pooled(ctx: Context, spec: RowTraining, init: str, sources: Sequence[Source], template: str | None = None) -> Pool:
    """The samples of all sources, each at most `spec.tokens_per_batch` tokens. Tokenised once: the second time they are found in the cache.

    Args:
        ctx: of the stage. Rows that were left out or cut are counted in its metrics, and said.
        spec: settings.
        init: reference of the model whose tokenizer they are for.
        sources: at least one.
        template: they are rendered in; None = the model's.

    Raises:
        DataError: a row is too long and that is an error, or none of a source is short enough.
    """
    digest = ctx.template_digest(init, template)
    pool = Pool(tuple(_stored(spec, digest, source) for source in sources))
    tally = sum((Counter(store.tally) for store in pool.stores), Counter[str]())
    for what, count in sorted(tally.items()):
        ctx.console.message(f"{ctx.name}: {count} rows longer than {spec.tokens_per_batch} tokens {what}")
        ctx.metrics[f"rows_{what}"] = ctx.metrics.get(f"rows_{what}", 0.0) + count
    empty = next((source for source, store in zip(sources, pool.stores, strict=True) if not len(store)), None)
    if empty is not None:
        raise DataError("no row is short enough for a batch", str(empty.rows.path), "raise tokens_per_batch, or say too_long: truncate")
    return pool


def _stored(spec: RowTraining, template: str, source: Source) -> SampleStore:
    parts = [str(REVISION), source.made, source.rows.digest, template, str(spec.tokens_per_batch), spec.too_long]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def make(tally: Counter[str]) -> Iterator[Sample]:
        return fitted(source.make(source.rows), spec.tokens_per_batch, spec.too_long, tally)

    return stored(cache_folder() / "samples" / key, make)


def both(template: Template, preferences: Iterable[Preference]) -> Iterator[tuple[Preference, Sample, Sample]]:
    """Each preference with its chosen and its rejected answer as bonded samples. The prompt is exactly the one an engine continues, so the
    two answers start at the same token."""
    named, told = tee(preferences)
    rendered = answers(template, (side for preference in told for side in _sides(preference)))
    for index, preference in enumerate(named):
        bond = f"{index}:{preference.id}"
        chosen, rejected = (
            Sample(f"{bond}/{side}", said.tokens, said.mask, bond=bond) for side, said in (("chosen", next(rendered)), ("rejected", next(rendered)))
        )
        yield preference, chosen, rejected


def _sides(preference: Preference) -> Iterator[Conversation]:
    for answer in (preference.chosen, preference.rejected):
        yield Conversation(preference.id, (*preference.prompt, answer), meta=preference.meta)
