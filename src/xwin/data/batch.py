"""Sample -> Batch -> Outputs: sequences laid end to end under a token budget, prompts shared, nothing padded, nothing split.

Everything of a Batch is indexed at the token being *predicted*: `logp[t]` = log p(tokens[t] | what came before).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

from xwin.errors import DataError, XwinError

Column = float | tuple[float, ...]


class MissingColumn(XwinError):
    """An objective reads a column that no earlier step made."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to learn from.

    Example, prompt of 3 tokens and answer of 2:
        Sample("q7/0", tokens=(1, 5, 9, 42, 2), mask=(F, F, F, T, T), columns={"advantage": 0.8, "old_logp": (0, 0, 0, -.3, -.1)})
    """

    id: str
    tokens: tuple[int, ...]
    """[L]"""
    mask: tuple[bool, ...]
    """[L] True where predicting tokens[t] is trained; never at t = 0."""
    columns: Mapping[str, Column] = field(default_factory=dict, hash=False)
    """A number per sequence, or one per token [L]."""
    bond: str | None = None
    """Samples with one bond share a batch, in order: (chosen, rejected)."""

    @property
    def start(self) -> int:
        """Index of the first trained token: where the prompt, which siblings may share, ends."""
        return self.mask.index(True) if True in self.mask else len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """S sequences laid end to end in T tokens; no padding.

    A segment may continue an earlier one (its parent): it attends to all of it and positions go on from it, so a prompt shared by its
    answers is computed once. Segments that are only somebody's parent belong to no sample.
    """

    tokens: Tensor
    """[T] int64"""
    position: Tensor
    """[T] int64, restarts at 0 at each root segment."""
    segment: Tensor
    """[T] int64 in 0..S-1"""
    mask: Tensor
    """[T] bool; False at the first token of every root segment."""
    parent: Tensor
    """[S] int64; -1, or the earlier segment this one continues."""
    ids: tuple[str, ...]
    """[S] sample id, "" for a segment that is only a parent."""
    bonds: tuple[str | None, ...]
    """[S]"""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [T] or [S] float32"""
    temperature: float = 1.0
    """Divides the logits before log-softmax: what was sampled at 0.7 is judged at 0.7."""

    def __len__(self) -> int:
        return self.tokens.numel()

    @cached_property
    def starts(self) -> Tensor:
        """[S] index of each segment's first token."""
        first = torch.ones_like(self.segment, dtype=torch.bool)
        first[1:] = self.segment[1:] != self.segment[:-1]
        return first.nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> Tensor:
        """[S] tokens of each segment, its parent's not counted."""
        return torch.bincount(self.segment, minlength=len(self.ids))

    @cached_property
    def last(self) -> Tensor:
        """[S] index of each segment's last token."""
        return self.starts + self.lengths - 1

    @cached_property
    def source(self) -> Tensor:
        """[T] index of the token that predicts each token; -1 at the first token of a root segment."""
        before = torch.arange(len(self), device=self.tokens.device) - 1
        before[self.starts] = torch.where(self.parent >= 0, self.last[self.parent.clamp(min=0)], -1)
        return before

    def column(self, name: str) -> Tensor:
        """[T] or [S] float32.

        Raises:
            MissingColumn: says who should have made it.
        """
        if name not in self.columns:
            raise MissingColumn(f"the batch has no column '{name}'", fix="use a credit or stage that makes it")
        return self.columns[name]

    def samples(self) -> list[int]:
        """Segments that are samples, in order; the others are only parents."""
        return [s for s, name in enumerate(self.ids) if name]

    def pairs(self) -> list[tuple[int, int]]:
        """[P] (chosen segment, rejected segment) of each bond of two."""
        bonded: dict[str, list[int]] = {}
        for s, bond in enumerate(self.bonds):
            if bond is not None:
                bonded.setdefault(bond, []).append(s)
        return [(both[0], both[1]) for both in bonded.values()]

    def per_token(self, x: Tensor) -> Tensor:
        """[S] -> [T]: each token gets the number of its own segment."""
        return x[self.segment]

    def per_sequence(self, x: Tensor) -> Tensor:
        """[T] -> [S]: sum over the trained tokens of each segment."""
        values = x.masked_fill(~self.mask, 0.0)
        return torch.zeros(len(self.ids), dtype=values.dtype, device=values.device).index_add(0, self.segment, values)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        tensors = {n: getattr(self, n).to(device) for n in ("tokens", "position", "segment", "mask", "parent")}
        columns = {name: value.to(device) for name, value in self.columns.items()}
        return Batch(**tensors, ids=self.ids, bonds=self.bonds, columns=columns, temperature=self.temperature)


@dataclass(frozen=True)
class Outputs:
    """What a model says about a Batch; only what was asked for is set."""

    logp: Tensor | None = None
    """[T] nats, fp32; 0 where the mask is False."""
    entropy: Tensor | None = None
    """[T] nats, fp32; 0 where the mask is False. No gradient."""
    value: Tensor | None = None
    """[T] expected return before tokens[t] is written, reward units, fp32."""
    score: Tensor | None = None
    """[S] reward units, fp32, read at each segment's last token; of an ensemble [S, K], one for each head."""
    uniform: Tensor | None = None
    """[T] mean of log p over the whole vocabulary, nats, fp32; 0 where the mask is False."""

    def get(self, name: str) -> Tensor:
        """The output of this name.

        Raises:
            MissingColumn: the objective does not declare that it reads it.
        """
        value = getattr(self, name)
        if value is None:
            raise MissingColumn(f"the output '{name}' was not computed", fix=f"add '{name}' to the objective's `reads`")
        return value

    def cpu(self) -> Outputs:
        """The same in the memory of the processor."""
        return Outputs(*(None if value is None else value.cpu() for value in (self.logp, self.entropy, self.value, self.score, self.uniform)))


@dataclass(slots=True)
class _Unit:
    """What must stay together: the samples of one bond, or one sample."""

    samples: list[Sample]

    @property
    def size(self) -> int:
        return sum(len(s.tokens) for s in self.samples)

    @property
    def prompt(self) -> tuple[int, ...]:
        first = self.samples[0]
        return first.tokens[: first.start]


def pack(samples: Sequence[Sample], *, tokens: int, share: bool = False, temperature: float = 1.0) -> list[Batch]:
    """Samples -> batches of at most `tokens` tokens. Best-fit decreasing, deterministic; splits no sequence and no bond, loses none.

    Args:
        samples: any order; samples of one bond keep theirs.
        tokens: budget of a batch.
        share: compute what sequences have in common once (Batch.parent): the start that all prompts share (a system message), and each
            prompt that several samples answer. Gradients and outputs are the same but for rounding. Column values over a shared part are
            dropped: nothing there is trained.
        temperature: see Batch.temperature.

    Raises:
        DataError: one sample or bond is longer than the budget, or trains its first token.
    """
    for sample in samples:
        if sample.mask and sample.mask[0]:
            raise DataError("the first token of a sequence cannot be trained: nothing predicts it", sample.id)
    units = _units(samples)
    prefix = _common_prefix(samples) if share else 0
    families = _families(units, tokens - prefix, prefix) if share else [[u] for u in units]
    size = [_cost(family, prefix) if share else family[0].size for family in families]
    bins: list[list[list[_Unit]]] = []
    space: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for index in sorted(range(len(families)), key=lambda i: (-size[i], i)):
        if size[index] + prefix > tokens:
            names = ", ".join(s.id for s in families[index][0].samples)
            raise DataError(f"{size[index] + prefix} tokens do not fit a batch of {tokens}", names, "raise tokens_per_batch or shorten the data")
        at = bisect_left(space, (size[index], -1))
        left, chosen = space.pop(at) if at < len(space) else (tokens - prefix, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(families[index])
        insort(space, (left - size[index], chosen))
    return [_lay_out(list(_segments(content, prefix, share=share)), temperature) for content in bins]


SHORTEST_PREFIX = 8
"""Tokens; a shorter common start is not worth a segment of its own."""


def _common_prefix(samples: Sequence[Sample]) -> int:
    """Tokens that all prompts begin with; every sequence keeps at least one token of its own."""
    if len(samples) < 2:
        return 0
    low, high = min(s.tokens for s in samples), max(s.tokens for s in samples)  # what the extremes share, all share
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    common = min(common, *(min(s.start, len(s.tokens) - 1) for s in samples))
    return common if common >= SHORTEST_PREFIX else 0


def _units(samples: Sequence[Sample]) -> list[_Unit]:
    units: list[_Unit] = []
    bonded: dict[str, _Unit] = {}
    for sample in samples:
        if sample.bond is not None and sample.bond in bonded:
            bonded[sample.bond].samples.append(sample)
            continue
        units.append(_Unit([sample]))
        if sample.bond is not None:
            bonded[sample.bond] = units[-1]
    return units


def _cost(family: Sequence[_Unit], prefix: int) -> int:
    """Tokens of a family when its prompt, if it has one in common, is computed once; what all families share is not counted."""
    members = [s for unit in family for s in unit.samples]
    apart = sum(len(s.tokens) - prefix for s in members)
    return apart - (len(members) - 1) * (members[0].start - prefix) if _alike(members) else apart


def _alike(members: Sequence[Sample]) -> bool:
    """Whether all continue one prompt, each with a token of its own."""
    first = members[0]
    return all(s.start == first.start < len(s.tokens) and s.tokens[: s.start] == first.tokens[: s.start] for s in members)


def _families(units: Sequence[_Unit], budget: int, prefix: int) -> list[list[_Unit]]:
    """Units with the same prompt, cut so that each family fits the budget."""
    same: dict[tuple[int, ...], list[_Unit]] = {}
    families: list[list[_Unit]] = []
    for unit in units:
        if not _alike(unit.samples):
            families.append([unit])
            continue
        family = same.get(unit.prompt)
        if family is None or _cost([*family, unit], prefix) > budget:
            family = same[unit.prompt] = []
            families.append(family)
        family.append(unit)
    return families


@dataclass(frozen=True, slots=True)
class _Segment:
    sample: Sample
    begin: int
    end: int
    parent: int
    named: bool


def _segments(content: Sequence[Sequence[_Unit]], prefix: int, *, share: bool) -> Iterator[_Segment]:
    """Segments in order: what all share, then each shared prompt right before the samples that continue it."""
    root = -1
    count = 0
    if prefix:
        yield _Segment(content[0][0].samples[0], 0, prefix, -1, named=False)
        root, count = 0, 1
    for family in content:
        members = [s for unit in family for s in unit.samples]
        first = members[0]
        prompt = first.start
        shared = share and len(members) > 1 and prompt > prefix and _alike(members)
        parent, begin = (count, prompt) if shared else (root, prefix)
        if shared:
            yield _Segment(first, prefix, prompt, root, named=False)
        for sample in members:
            yield _Segment(sample, begin, len(sample.tokens), parent, named=True)
        count += len(members) + shared


def _lay_out(segments: Sequence[_Segment], temperature: float) -> Batch:
    names = sorted({name for g in segments for name in g.sample.columns})
    sizes = np.array([g.end - g.begin for g in segments])
    total = int(sizes.sum())
    return Batch(
        tokens=torch.from_numpy(np.fromiter(chain.from_iterable(g.sample.tokens[g.begin : g.end] for g in segments), np.int64, total)),
        position=torch.from_numpy(np.concatenate([np.arange(g.begin, g.end) for g in segments])),
        segment=torch.from_numpy(np.repeat(np.arange(len(segments)), sizes)),
        mask=torch.from_numpy(np.fromiter(chain.from_iterable(g.sample.mask[g.begin : g.end] for g in segments), np.bool_, total)),
        parent=torch.tensor([g.parent for g in segments]),
        ids=tuple(g.sample.id if g.named else "" for g in segments),
        bonds=tuple(g.sample.bond if g.named else None for g in segments),
        columns={name: _column(name, segments) for name in names},
        temperature=temperature,
    )


def _column(name: str, segments: Sequence[_Segment]) -> Tensor:
    """[T] when the samples give one number per token, [S] when they give one per sequence; absent = 0."""
    values = [g.sample.columns.get(name, 0.0) for g in segments]
    kinds = {type(v) is tuple for kind, v in zip((name in g.sample.columns for g in segments), values, strict=True) if kind}
    if kinds == {False}:
        return torch.tensor([v if g.named else 0.0 for g, v in zip(segments, values, strict=True)], dtype=torch.float32)
    if kinds != {True}:
        raise DataError(f"the column '{name}' is per token in some samples and per sequence in others")
    rows = (v[g.begin : g.end] if isinstance(v, tuple) else (0.0,) * (g.end - g.begin) for g, v in zip(segments, values, strict=True))
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.float32))


def unpack(batch: Batch, values: Tensor) -> dict[str, tuple[float, ...]]:
    """Sample id -> its numbers, one per token of its own segment (the shared prompt's are left out).

    Args:
        batch: what was packed.
        values: [T]
    """
    rows = values.tolist()
    tokens = groupby(range(len(batch)), key=batch.segment.tolist().__getitem__)
    return {batch.ids[s]: tuple(rows[t] for t in index) for s, index in tokens if batch.ids[s]}
