"""Listed: a sequence whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class Listed(Sequence[T]):
    """What rows on disk, samples and steps have in common: a subclass has `__len__` and `at`; slices give lists, -1 is the last."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The item at a place in 0 .. len - 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.at(place) for place in range(len(self))[index]]
        return self.at(range(len(self))[index])
