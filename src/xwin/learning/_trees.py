"""How nested state becomes named tensors and JSON, and how it gets back into the containers it came from."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Json = Any
Tree = Any
"""Mappings, lists and tuples, nested, with tensors and JSON scalars as leaves: what `state_dict()` of a module or an optimizer returns."""


def encoded(node: Tree, name: str, flat: dict[str, Tensor]) -> Json:
    """How the tree nests, as JSON, every scalar in it; its tensors go to `flat`. JSON alone would turn int keys into text, and tuples into lists.

    Raises:
        TypeError: a leaf is neither a tensor nor a JSON scalar, or two tensors have one name.
    """
    if isinstance(node, Tensor):
        if name in flat:
            raise TypeError(f"two tensors have the name {name!r}")
        flat[name] = node.detach()
        return {"tensor": name, "dtype": _dtype(node), "shape": list(node.shape)}
    if isinstance(node, Mapping):
        return {"map": [[key, encoded(value, _joined(name, key), flat)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        form = "tuple" if isinstance(node, tuple) else "list"
        return {form: [encoded(value, _joined(name, i), flat) for i, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise TypeError(f"{name}: a {type(node).__name__} cannot be saved in a checkpoint")


@dataclass
class Fit:
    """Lays what was saved over what is there, without changing either."""

    wanted: dict[str, Tensor] = field(default_factory=dict)
    """Name in the checkpoint -> tensor to fill."""
    misfits: list[str] = field(default_factory=list)

    def node(self, saved: Json, mine: Tree, name: str) -> Tree:
        """The value that `mine` will have; tensors in it are those of `mine`, not yet filled."""
        (kind, content), *_ = saved.items()
        if kind == "value":
            if isinstance(mine, Tensor | Mapping):
                self.misfits.append(f"{name} is {content!r} in the checkpoint and a {type(mine).__name__} here")
            return content
        if kind == "tensor":
            return self._tensor(saved, mine, name)
        if kind == "map":
            items = {key: self.node(value, self._item(mine, key), _joined(name, key)) for key, value in content}
            self._compare(mine, Mapping, set(items), name)
            return items
        items = [self.node(value, self._item(mine, i), _joined(name, i)) for i, value in enumerate(content)]
        self._compare(mine, list | tuple, set(range(len(items))), name)
        return tuple(items) if kind == "tuple" else items

    def _tensor(self, saved: Json, mine: Tree, name: str) -> Tensor | None:
        if mine is _NEW:
            mine = torch.empty(saved["shape"], dtype=getattr(torch, saved["dtype"]))
        if not isinstance(mine, Tensor):
            self.misfits.append(f"{name} is a tensor in the checkpoint and not here")
            return None
        if _dtype(mine) != saved["dtype"] or list(mine.shape) != saved["shape"]:
            self.misfits.append(f"{name} is {saved['dtype']} {saved['shape']} in the checkpoint, {_dtype(mine)} {list(mine.shape)} here")
            return None
        self.wanted[saved["tensor"]] = mine
        return mine

    def _item(self, mine: Tree, key: str | int) -> Tree:
        if mine is _NEW or (isinstance(mine, Mapping | list | tuple) and not mine):
            return _NEW
        if isinstance(mine, Mapping):
            return mine.get(key)
        return mine[key] if isinstance(mine, list | tuple) and isinstance(key, int) and key < len(mine) else None

    def _compare(self, mine: Tree, form: Any, keys: set[Any], name: str) -> None:
        """Notes what is here and not in the checkpoint; what is missing here was noted at its tensor."""
        if mine is _NEW:
            return
        if not isinstance(mine, form):
            self.misfits.append(f"{name} nests in another way")
            return
        here = set(mine) if isinstance(mine, Mapping) else set(range(len(mine)))
        self.misfits.extend(f"{_joined(name, key)} is not in the checkpoint" for key in sorted(here - keys, key=str))


_NEW = object()
"""Stands for what is not there yet and may be made."""


def pour(new: Tree, mine: Tree) -> Tree:
    """`new` inside the containers of `mine`, so that whoever holds those sees it."""
    if isinstance(mine, MutableMapping):
        for key, value in new.items():
            mine[key] = pour(value, mine.get(key))
        return mine
    if isinstance(mine, list):
        mine[:] = [pour(value, mine[i] if i < len(mine) else None) for i, value in enumerate(new)]
        return mine
    return new


def _joined(name: str, key: str | int) -> str:
    return f"{name}/{key}" if name else str(key)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
