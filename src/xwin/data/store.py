"""SampleStore: tokenised samples on disk, memory-mapped, so that a second run starts at once and memory stays flat."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xwin.data.batch import Column, Sample
from xwin.data.listed import Listed
from xwin.errors import DataError
from xwin.run.storage import storage_errors, sync, write_atomic

REVISION = 1
"""Of the layout; raised when it changes, so that nobody reads old files in a new way."""

FILES = {"tokens": "<i4", "mask": "?", "ends": "<i8", "names": "u1", "name_ends": "<i8", "bonds": "<i8"}
"""File -> type. tokens and mask: all samples end to end. ends: [N] where each stops. names: UTF-8 ids end to end. bonds: [N] number, -1 = none."""


@dataclass(frozen=True)
class SampleStore(Listed[Sample]):
    """N samples in a folder; nothing is read before it is asked for.

    Example: store[7].tokens; store.lengths.sum()
    """

    folder: Path

    @cached_property
    def _meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @cached_property
    def _files(self) -> dict[str, NDArray[np.generic]]:
        kinds = FILES | dict.fromkeys((f"column.{name}" for name in self._meta["scalars"] + self._meta["rows"]), "<f4")
        return {name: _mapped(self.folder / f"{name}.bin", kind) for name, kind in kinds.items()}

    @property
    def tally(self) -> Mapping[str, int]:
        """What happened to rows on the way, as the maker counted it.  Example: {"dropped": 3}"""
        return self._meta["tally"]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each sample."""
        return np.diff(np.asarray(self._files["ends"], np.int64), prepend=0)

    @cached_property
    def bonds(self) -> NDArray[np.int64]:
        """[N] number of each sample's bond; -1 = none."""
        return np.asarray(self._files["bonds"], np.int64)

    def __len__(self) -> int:
        return len(self._files["ends"])

    def at(self, place: int) -> Sample:
        """See Listed."""
        span, name = self._span("ends", place), self._span("name_ends", place)
        columns: dict[str, Column] = {key: float(self._files[f"column.{key}"][place]) for key in self._meta["scalars"]}
        columns |= {key: tuple(self._files[f"column.{key}"][span].tolist()) for key in self._meta["rows"]}
        bond = int(self.bonds[place])
        return Sample(
            bytes(self._files["names"][name]).decode(),
            tuple(self._files["tokens"][span].tolist()),
            tuple(self._files["mask"][span].tolist()),
            columns,
            None if bond < 0 else str(bond),
        )

    def _span(self, ends: str, place: int) -> slice:
        stops = self._files[ends]
        return slice(int(stops[place - 1]) if place else 0, int(stops[place]))


@dataclass(frozen=True)
class Pool(Listed[Sample]):
    """The samples of several stores, end to end."""

    stores: tuple[SampleStore, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(store) for store in self.stores))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each sample."""
        return np.concatenate([store.lengths for store in self.stores])

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """[N] number of the store each sample comes from."""
        return np.repeat(np.arange(len(self.stores)), [len(store) for store in self.stores])

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """[N] number of the unit each sample belongs to, 0, 1, 1, 2 ...: those of a bond are one, and lie side by side."""
        bonds = np.concatenate([store.bonds for store in self.stores])
        with_previous = (bonds[1:] >= 0) & (bonds[1:] == bonds[:-1]) & (self.sources[1:] == self.sources[:-1])
        return np.cumsum(np.concatenate([[0], ~with_previous])) if len(bonds) else bonds

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, place: int) -> Sample:
        """See Listed."""
        source = bisect_right(self._ends, place)
        sample = self.stores[source][place - self._ends[source]]  # counted from the end of its store
        return sample if sample.bond is None else replace(sample, bond=f"{source}/{sample.bond}")


ABANDONED = 86_400.0
"""Seconds after which a draft belongs to nobody who is still at work."""


def stored(folder: Path, make: Callable[[Counter[str]], Iterable[Sample]]) -> SampleStore:
    """The store in `folder`, made from `make()` when it is not there yet. Two may make it at once; drafts of killed attempts go after a day.

    Args:
        folder: named by a digest of everything the samples depend on; `REVISION` is added.
        make: gives the samples, one at a time, and counts what it leaves out or changes; all samples carry the same columns.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing.
    """
    final = folder.with_name(f"{folder.name}.v{REVISION}")
    if (final / "meta.json").exists():
        return SampleStore(final)
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        part = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            tally: Counter[str] = Counter()
            _write(part, make(tally), tally)
            part.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner alone, and a cache may be shared
            try:
                part.rename(final)
            except OSError:
                if not (final / "meta.json").exists():  # somebody else finishing first is as good
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return SampleStore(final)


def _sweep(final: Path) -> None:
    """Removes drafts that attempts killed long ago left."""
    for draft in final.parent.glob(f".{final.name}.*"):
        if time.time() - draft.stat().st_mtime > ABANDONED:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


CHUNK = 1024
"""Samples written at a time."""


def _write(folder: Path, samples: Iterable[Sample], tally: Mapping[str, int]) -> None:
    """Streams samples into the files; meta.json comes last, with what `tally` holds then."""
    rest = iter(samples)
    first = next(rest, None)
    kinds = {} if first is None else _kinds(first)
    rest = iter(()) if first is None else chain((first,), rest)
    numbered = _numbered(rest)
    tokens = names = 0
    with ExitStack() as stack:
        paths = {name: folder / f"{name}.bin" for name in (*FILES, *(f"column.{name}" for name in kinds))}
        outs = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
        while pairs := list(islice(numbered, CHUNK)):
            chunk = [sample for sample, _ in pairs]
            arrays = _arrays(chunk, kinds) | {"bonds": np.array([number for _, number in pairs])}
            ends = tokens + np.cumsum([len(s.tokens) for s in chunk])
            name_ends = names + np.cumsum([len(s.id.encode()) for s in chunk])
            tokens, names = int(ends[-1]), int(name_ends[-1])
            arrays |= {"ends": ends, "name_ends": name_ends}
            for name, array in arrays.items():
                outs[name].write(array.astype(FILES.get(name, "<f4")).tobytes())
    for path in paths.values():
        sync(path)
    rows = {name for name, row in kinds.items() if row}
    meta = {"scalars": sorted(kinds.keys() - rows), "rows": sorted(rows), "tally": dict(tally)}
    write_atomic(folder / "meta.json", json.dumps(meta))


def _kinds(sample: Sample) -> dict[str, bool]:
    """Column -> whether it holds a number per token."""
    return {name: isinstance(value, tuple) for name, value in sample.columns.items()}


def _arrays(chunk: Sequence[Sample], kinds: Mapping[str, bool]) -> dict[str, NDArray[np.generic]]:
    """What a chunk adds to the files, but for bonds and where samples end."""
    for sample in chunk:
        if _kinds(sample) != kinds:
            raise DataError(f"has the columns {sorted(sample.columns)}, the samples before it {sorted(kinds)}", sample.id)
    arrays: dict[str, NDArray[np.generic]] = {
        "tokens": np.fromiter(chain.from_iterable(s.tokens for s in chunk), "<i4"),
        "mask": np.fromiter(chain.from_iterable(s.mask for s in chunk), "?"),
        "names": np.frombuffer(b"".join(s.id.encode() for s in chunk), "u1"),
    }
    for name in kinds:
        values = [value if isinstance(value := s.columns[name], tuple) else (value,) for s in chunk]
        arrays[f"column.{name}"] = np.fromiter(chain.from_iterable(values), "<f4")
    return arrays


def _numbered(samples: Iterable[Sample]) -> Iterator[tuple[Sample, int]]:
    """Each sample with the number of its bond, -1 = none. Those of a bond lie side by side, so nothing but the last one is remembered."""
    last, number = None, -1
    for sample in samples:
        if sample.bond is not None and sample.bond != last:
            last, number = sample.bond, number + 1
        yield sample, -1 if sample.bond is None else number


def _mapped(path: Path, kind: str) -> NDArray[np.generic]:
    """The file as an array; numpy cannot map an empty one."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)
