"""Checkpoints: what a stage needs to go on, written so that a kill at any moment leaves the one before or the new one, whole.

    checkpoints/
      latest                  the name of the newest one; replaced last
      step-000400/
        shard-...safetensors  the tensors, one file of each worker, by torch's distributed checkpoint (DCP): another number of workers can load it
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from xwin.distributed.shard import local
from xwin.distributed.world import World
from xwin.errors import CheckpointError
from xwin.learning._trees import Fit, Tree, encoded, pour
from xwin.models.weights import require_finite
from xwin.run.storage import digest_file, storage_errors, sync, write_atomic

Json = Any

_NAME = re.compile(r"step-(\d{6,})")
_DIGESTS = "DIGESTS"
_STATE = "state.json"
_LATEST = "latest"
_ALONE = World(0, 1, torch.device("cpu"))


def save(  # noqa: PLR0913 - what is saved, and what stays beside it
    folder: Path,
    step: int,
    tensors: Mapping[str, Tree],
    state: Mapping[str, Json],
    *,
    keep: int = 1,
    reach: int = 0,
    world: World = _ALONE,
) -> Path:
    """Writes the checkpoint of a step; then removes those after it and all but the newest `keep`, and what `reach` needs.

    Args:
        folder: holds the checkpoints of one stage; made if missing. Only one process, or the workers of one world, may write it.
        step: optimizer steps done.
        tensors: name -> state dict. Nested; leaves are tensors, numbers, text, None. Of several workers, each has its part of some tensors.
        state: anything else, as JSON; that of the first worker is written.
        keep: how many to keep, this one included, at least 1.
        reach: also keep at most two others, so that from now on there always is one that lies this many steps back, or the first of all.
        world: of the learners. Every worker calls this; each writes its part, and the first the rest.

    Returns:
        The folder of this checkpoint.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing; the checkpoints that were there still are.
        TrainingStopped: a tensor holds a number that is not finite; the checkpoints that were there still are.
        TypeError: a leaf is neither a tensor nor a JSON scalar.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    path = folder / f"step-{step:06d}"
    part = path.with_name(f"{path.name}.tmp")
    try:
        _fill(part, step, tensors, state, world)
        with world.together(), storage_errors(path):
            if world.rank == 0:
                _commit(part, path)
                _retire(folder, step, keep, reach)
    finally:
        if world.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
    return path


def latest(folder: Path) -> Path | None:
    """The checkpoint to go on from, or None. Clears away what a kill left half-written, so only the process that owns the run may call it.

    It is the one that the file `latest` names; if that is missing or names none that is there, the one with the highest step. Those after
    it go: they are of a history that was left, by a rollback or by an earlier resume.
    """
    if not folder.is_dir():
        return None
    with storage_errors(folder):
        _tidy(folder)
    found = {path.name: path for path in _complete(folder)}
    named = folder / _LATEST
    name = named.read_text(errors="replace").strip() if named.is_file() else ""
    chosen = found.get(name) or next(reversed(found.values()), None)
    with storage_errors(folder):
        for path in found.values():
            if chosen is not None and _step(path) > _step(chosen):
                _remove(path)
    return chosen


def steps(folder: Path) -> list[int]:
    """The steps that there are checkpoints of, rising."""
    return [_step(path) for path in _complete(folder)] if folder.is_dir() else []


def before(folder: Path, step: int) -> Path:
    """The newest checkpoint of a step that is no later than `step`.

    Raises:
        CheckpointError: there is none.
    """
    found = [path for path in _complete(folder) if _step(path) <= step]
    if not found:
        raise CheckpointError(f"there is no checkpoint of step {step} or before to return to", str(folder), "run the same command again")
    return found[-1]


def load(path: Path, into: MutableMapping[str, Tree], world: World = _ALONE) -> dict[str, Json]:
    """Reads a checkpoint into the state dicts of the objects that were saved; everything is checked before anything is changed.

    Args:
        path: what `save` or `latest` returned.
        into: as nested as what was saved. Tensors are filled in place, numbers and text are replaced, and an empty mapping or list
            takes what was saved there (an optimizer has no moments before its first step); those tensors are made on the CPU. Of several
            workers, each reads its part, whatever their number was when it was saved.
        world: of the learners. Every worker calls this.

    Returns:
        The `state` that was saved.

    Raises:
        CheckpointError: a file is missing, cut short or altered, or holds tensors of other names, shapes or types than `into`.
    """
    verify(path, world)
    saved = json.loads((path / _STATE).read_text(encoding="utf-8"))
    fit = Fit()
    tree = fit.node(saved["tensors"], into, "")
    if fit.misfits:
        more = f" (and {len(fit.misfits) - 1} more)" if len(fit.misfits) > 1 else ""
        raise _broken(f"does not fit what is trained now: {fit.misfits[0]}{more}", path, path)
    _read(path, fit.wanted)
    pour(tree, into)
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


def verify(path: Path, world: World = _ALONE) -> None:
    """Compares every file of a checkpoint with its digest, without opening it in any other way. Of several workers, each takes some of them.

    Raises:
        CheckpointError: names the file that is missing, cut short, altered or not of this checkpoint, and what to do.
    """
    with world.together():
        listed = _listed(path)
        for name in list(listed)[world.rank :: world.size]:
            _require_digest(path / name, listed[name], path)
        for file in sorted(path.iterdir()):
            if file.name not in {*listed, _DIGESTS}:
                raise _broken(f"is not listed in {_DIGESTS}, so it is not of this checkpoint", file, path)


def _require_digest(file: Path, digest: str, path: Path) -> None:
    if not file.is_file():
        raise _broken("is missing", file, path)
    try:
        found = digest_file(file)
    except OSError as error:
        raise _broken(f"cannot be read: {error.strerror}", file, path) from error
    if found != digest:
        raise _broken("is cut short or was altered: its digest is not the one that was written", file, path)


def _fill(part: Path, step: int, tensors: Mapping[str, Tree], state: Mapping[str, Json], world: World) -> None:
    """Everything of a checkpoint, on the disk when this returns."""
    flat: dict[str, Tensor] = {}
    record = {"step": step, "tensors": encoded(tensors, "", flat), "state": state}
    with world.together(), storage_errors(part):
        require_finite({name: local(tensor) for name, tensor in flat.items()}, part)
        if world.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (part / _STATE).write_text(json.dumps(record), encoding="utf-8")
    with storage_errors(part):
        _write(part, _apart(flat), world)
    digests: dict[str, str] = {}
    for listed in world.gather(_synced(part, world)):
        digests |= listed
    with world.together(), storage_errors(part):
        if world.rank == 0:
            (part / _DIGESTS).write_text(_digest_lines(dict(sorted(digests.items()))), encoding="utf-8")
            sync(part / _DIGESTS)
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


def _retire(folder: Path, step: int, keep: int, reach: int) -> None:
    """Removes all but the newest `keep` up to `step` and what `reach` needs; those after it are of a history that was left.

    The newest one that lies `reach` steps back is needed now, the oldest of the others will be.
    """
    paths = _complete(folder)
    kept = [path for path in paths if _step(path) <= step][-keep:]
    if reach:
        kept += [path for path in paths if _step(path) <= step - reach][-1:]
        kept += [path for path in paths if step - reach < _step(path) <= step][:1]
    for path in paths:
        if path not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Renamed first: a half-removed one must not look complete."""
    doomed = path.with_name(f"{path.name}.tmp")
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


def _write(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    """This worker's part of the tensors; what all of them have alike is written by one."""
    if not tensors:
        return
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    group = world.host.get_group() if world.host is not None else None
    with _plainly():
        dcp_save(tensors, storage_writer=writer, planner=planner, process_group=group, no_dist=group is None)


def _synced(path: Path, world: World) -> dict[str, str]:
    """File name -> digest of those that fall to this worker, all of them safe on the disk."""
    with world.together(), storage_errors(path):
        files = sorted(path.iterdir())[world.rank :: world.size]
        for file in files:
            sync(file)
        return {file.name: digest_file(file) for file in files}


def _read(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fills the tensors in place. Workers need not wait for each other: each reads the rows that it has."""
    if not tensors:
        return
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _plainly():
        dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), planner=planner, no_dist=True)


def _apart(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, no two of them in the same memory: safetensors wants them so."""
    seen: set[int] = set()
    out = {}
    for name, tensor in flat.items():
        tensor = tensor.contiguous()
        home = local(tensor).untyped_storage().data_ptr()
        out[name] = tensor.clone() if home in seen else tensor
        seen.add(home)
    return out


@contextmanager
def _plainly() -> Iterator[None]:
    """Around DCP: no warning that one process is alone, and the error itself instead of DCP's wrapper.

    DCP catches everything, also KeyboardInterrupt, and raises a CheckpointException that is no Exception.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from None
