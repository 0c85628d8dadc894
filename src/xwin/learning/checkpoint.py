"""Checkpoints: what a stage needs to go on, written so that a kill at any moment leaves the one before or the new one, whole.

    checkpoints/
      latest                  the name of the newest one; replaced last
      step-000400/
        shard-...safetensors  the tensors, by torch's distributed checkpoint (DCP): may be loaded at another world size
        state.json            everything that is not a tensor, and how the tensors nest
        DIGESTS               sha256 of each file, as `sha256sum -c DIGESTS` reads it

DCP writes safetensors here, not its own format: that one pickles, and spends 0.3 ms on every tensor. So no pickle is ever opened;
still the digests are checked before anything else is.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from xwin.errors import CheckpointError
from xwin.run.storage import digest_file, storage_errors, sync, write_atomic

Json = Any
Tree = Any
"""Mappings, lists and tuples, nested, with tensors and JSON scalars as leaves: what `state_dict()` of a module or an optimizer returns."""

_NAME = re.compile(r"step-(\d{6,})")
_DIGESTS = "DIGESTS"
_STATE = "state.json"
_LATEST = "latest"


def save(folder: Path, step: int, tensors: Mapping[str, Tree], state: Mapping[str, Json], *, keep: int = 1) -> Path:
    """Writes the checkpoint of a step; then removes those after it and all but the newest `keep`.

    Args:
        folder: holds the checkpoints of one stage; made if missing. Only one process may write it.
        step: optimizer steps done.
        tensors: name -> state dict. Nested; leaves are tensors, numbers, text, None.
        state: anything else, as JSON.
        keep: how many to keep, this one included, at least 1.

    Returns:
        The folder of this checkpoint.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing; the checkpoints that were there still are.
        TypeError: a leaf is neither a tensor nor a JSON scalar.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    path = folder / f"step-{step:06d}"
    part = path.with_name(f"{path.name}.tmp")
    with storage_errors(path):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _fill(part, step, tensors, state)
            _commit(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _retire(folder, step, keep)
    return path


def latest(folder: Path) -> Path | None:
    """The checkpoint to go on from, or None. Clears away what a kill left half-written, so only the process that owns the run may call it.

    It is the one that the file `latest` names; if that is missing or names none that is there, the one with the highest step.
    """
    if not folder.is_dir():
        return None
    with storage_errors(folder):
        _tidy(folder)
    found = {path.name: path for path in _complete(folder)}
    named = folder / _LATEST
    name = named.read_text(errors="replace").strip() if named.is_file() else ""
    return found.get(name) or next(reversed(found.values()), None)


def load(path: Path, into: MutableMapping[str, Tree]) -> dict[str, Json]:
    """Reads a checkpoint into the state dicts of the objects that were saved; everything is checked before anything is changed.

    Args:
        path: what `save` or `latest` returned.
        into: as nested as what was saved. Tensors are filled in place, numbers and text are replaced, and an empty mapping or list
            takes what was saved there (an optimizer has no moments before its first step); those tensors are made on the CPU.

    Returns:
        The `state` that was saved.

    Raises:
        CheckpointError: a file is missing, cut short or altered, or holds tensors of other names, shapes or types than `into`.
    """
    verify(path)
    saved = json.loads((path / _STATE).read_text(encoding="utf-8"))
    fit = _Fit()
    tree = fit.node(saved["tensors"], into, "")
    if fit.misfits:
        more = f" (and {len(fit.misfits) - 1} more)" if len(fit.misfits) > 1 else ""
        raise _broken(f"does not fit what is trained now: {fit.misfits[0]}{more}", path, path)
    _read(path, fit.wanted)
    _pour(tree, into)
    return saved["state"]


def states(folder: Path) -> list[dict[str, Json]]:
    """The `state` of each checkpoint that is kept, by step: what else on the disk they speak of.

    Raises:
        CheckpointError: one of them is damaged.
    """
    found = []
    for path in _complete(folder):
        file = path / _STATE
        if _listed(path)[_STATE] != digest_file(file):
            raise _broken("is cut short or was altered: its digest is not the one that was written", file, path)
        found.append(json.loads(file.read_text(encoding="utf-8"))["state"])
    return found


def verify(path: Path) -> None:
    """Compares every file of a checkpoint with its digest, without opening it in any other way.

    Raises:
        CheckpointError: names the file that is missing, cut short, altered or not of this checkpoint, and what to do.
    """
    listed = _listed(path)
    for name, digest in listed.items():
        file = path / name
        if not file.is_file():
            raise _broken("is missing", file, path)
        try:
            found = digest_file(file)
        except OSError as error:
            raise _broken(f"cannot be read: {error.strerror}", file, path) from error
        if found != digest:
            raise _broken("is cut short or was altered: its digest is not the one that was written", file, path)
    for file in sorted(path.iterdir()):
        if file.name not in {*listed, _DIGESTS}:
            raise _broken(f"is not listed in {_DIGESTS}, so it is not of this checkpoint", file, path)


def _fill(part: Path, step: int, tensors: Mapping[str, Tree], state: Mapping[str, Json]) -> None:
    """Everything of a checkpoint, on the disk when this returns."""
    flat: dict[str, Tensor] = {}
    record = {"step": step, "tensors": _encoded(tensors, "", flat), "state": state}
    _write(part, _apart(flat))
    (part / _STATE).write_text(json.dumps(record), encoding="utf-8")
    digests = {file.name: digest_file(file) for file in sorted(part.iterdir())}
    (part / _DIGESTS).write_text(_digest_lines(digests), encoding="utf-8")
    for file in part.iterdir():
        sync(file)
    sync(part)


def _commit(part: Path, path: Path) -> None:
    """Gives the finished checkpoint its name, then says that it is the latest."""
    old = path.with_name(f"{path.name}.old")
    if path.exists():  # the same step again, after a resume: a rename cannot replace a folder, and `latest` knows this detour
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    part.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    write_atomic(path.parent / _LATEST, f"{path.name}\n")


def _retire(folder: Path, step: int, keep: int) -> None:
    """Removes all but the newest `keep` up to `step`, and those after it: they are of a history that a resume left."""
    paths = _complete(folder)
    kept = [path for path in paths if _step(path) <= step][-keep:]
    for path in paths:
        if path not in kept:
            doomed = path.with_name(f"{path.name}.tmp")  # renamed first: a half-removed one must not look complete
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)


def _tidy(folder: Path) -> None:
    for old in folder.glob("step-*.old"):
        path = old.with_suffix("")
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    for part in folder.glob("step-*.tmp"):
        shutil.rmtree(part)
    for draft in folder.glob(f".{_LATEST}.*.tmp"):
        draft.unlink()


def _complete(folder: Path) -> list[Path]:
    """The checkpoints that were finished, by step."""
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / _DIGESTS).is_file()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _listed(path: Path) -> dict[str, str]:
    """File name -> sha256, as DIGESTS says."""
    file = path / _DIGESTS
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise _broken(f"cannot be read: {error.strerror}", file, path) from error
    except UnicodeDecodeError as error:
        raise _broken("was altered: it is not text", file, path) from error
    pairs = [line.partition("  ") for line in text.splitlines()]
    listed = {name: digest for digest, _, name in pairs}
    plain = all(Path(name).name == name for name in listed)  # no way out of the folder
    if not plain or _STATE not in listed or _digest_lines(listed) != text:
        raise _broken("is cut short or was altered", file, path)
    return listed


def _digest_lines(digests: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _broken(what: str, where: Path, checkpoint: Path) -> CheckpointError:
    fix = f"delete the folder {checkpoint}: the run then goes on from the checkpoint before it, or from the start of the stage"
    return CheckpointError(what, str(where), fix)


def _encoded(node: Tree, name: str, flat: dict[str, Tensor]) -> Json:
    """How the tree nests, as JSON, every scalar in it; its tensors go to `flat`. JSON alone would turn int keys into text, and tuples into lists."""
    if isinstance(node, Tensor):
        if name in flat:
            raise TypeError(f"two tensors have the name {name!r}")
        flat[name] = node.detach()
        return {"tensor": name, "dtype": _dtype(node), "shape": list(node.shape)}
    if isinstance(node, Mapping):
        return {"map": [[key, _encoded(value, _joined(name, key), flat)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        form = "tuple" if isinstance(node, tuple) else "list"
        return {form: [_encoded(value, _joined(name, i), flat) for i, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise TypeError(f"{name}: a {type(node).__name__} cannot be saved in a checkpoint")


@dataclass
class _Fit:
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


def _pour(new: Tree, mine: Tree) -> Tree:
    """`new` inside the containers of `mine`, so that whoever holds those sees it."""
    if isinstance(mine, MutableMapping):
        for key, value in new.items():
            mine[key] = _pour(value, mine.get(key))
        return mine
    if isinstance(mine, list):
        mine[:] = [_pour(value, mine[i] if i < len(mine) else None) for i, value in enumerate(new)]
        return mine
    return new


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    if not tensors:
        return
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _alone():
        dcp_save(tensors, storage_writer=writer, planner=planner, no_dist=True)


def _read(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fills the tensors in place."""
    if not tensors:
        return
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _alone():
        dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), planner=planner, no_dist=True)


def _apart(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, no two of them in the same memory: safetensors wants them so."""
    seen: set[int] = set()
    out = {}
    for name, tensor in flat.items():
        tensor = tensor.contiguous()
        home = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if home in seen else tensor
        seen.add(home)
    return out


@contextmanager
def _alone() -> Iterator[None]:
    """Around DCP in one process: no warning that it is one, and the error itself instead of DCP's wrapper.

    DCP catches everything, also KeyboardInterrupt, and raises a CheckpointException that is no Exception.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from None


def _joined(name: str, key: str | int) -> str:
    return f"{name}/{key}" if name else str(key)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
