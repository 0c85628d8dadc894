"""What happens to samples that are longer than the budget: an error, dropped and counted, or cut in a stated way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal

from xwin.data.batch import Column, Sample
from xwin.errors import DataError

TooLong = Literal["error", "drop", "truncate"]


def fitted(samples: Iterable[Sample], longest: int, too_long: TooLong, tally: Counter[str]) -> Iterator[Sample]:
    """The samples, each at most `longest` tokens; of a bond (a pair, whose samples follow each other), all together.

    Args:
        samples: any order, but those of a bond side by side.
        longest: tokens of a batch.
        too_long: "error" names the sample; "drop" leaves it out; "truncate" keeps what `shorten` keeps.
        tally: gets the number of units "dropped" and "truncated".

    Raises:
        DataError: one is too long and that is an error, or too long even when it is cut.
    """
    for _, both in groupby(enumerate(samples), key=lambda pair: pair[1].bond or pair[0]):
        unit = [sample for _, sample in both]
        size = sum(len(s.tokens) for s in unit)
        if size <= longest:
            yield from unit
        elif too_long == "truncate":
            tally["truncated"] += 1
            yield from shorten(unit, longest)
        elif too_long == "drop":
            tally["dropped"] += 1
        else:
            fix = "raise tokens_per_batch, or say too_long: drop or too_long: truncate"
            raise DataError(f"{size} tokens, but a batch holds {longest}", ", ".join(s.id for s in unit), fix)


def shorten(unit: Sequence[Sample], longest: int) -> list[Sample]:
    """The samples of one unit cut to `longest` tokens together, each to an equal share.

    The prompt (what comes before the first trained token) loses its start first, down to half the share; all of the unit lose the same
    tokens, so a pair keeps one prompt. Then what is left over is cut from the end. No end-of-sequence token is put where the answer did
    not end: the model must not learn to stop in the middle of a sentence (arXiv:2503.14476, section 3.4, masks such answers for the same reason).

    Args:
        unit: one sample, or those of a bond with their common prompt.
        longest: tokens of all of them.

    Raises:
        DataError: the share is too small to hold a prompt token and a trained one.
    """
    share = longest // len(unit)
    if share < 2:
        raise DataError(f"a budget of {longest} tokens holds no prompt with an answer", ", ".join(s.id for s in unit), "raise tokens_per_batch")
    prompt = min(s.start for s in unit)
    answer = max(len(s.tokens) - s.start for s in unit)
    kept = min(prompt, max(share - answer, share // 2))
    return [_part(s, prompt - kept, min(len(s.tokens), prompt - kept + share)) for s in unit]


def _part(sample: Sample, begin: int, end: int) -> Sample:
    """Tokens [begin, end) of a sample; the first is a prompt token."""
    return replace(sample, tokens=sample.tokens[begin:end], mask=sample.mask[begin:end], columns=_columns(sample.columns, begin, end))


def _columns(columns: Mapping[str, Column], begin: int, end: int) -> dict[str, Column]:
    return {name: value[begin:end] if isinstance(value, tuple) else value for name, value in columns.items()}
