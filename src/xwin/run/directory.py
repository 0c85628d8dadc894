"""What is left on disk: a run directory with one folder per stage, locked while somebody works in it, published stage by stage.

runs/tiny-s0/
    recipe.yaml  recipe.resolved.json  manifest.json  events.jsonl  report.html
    stages/sft/            manifest.json  events.jsonl  checkpoints/  and the outputs, e.g. final/
    stages/.old/sft-1f09c2ab/   a superseded stage; it comes back if its settings do
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from xwin.errors import CheckpointError, Failure, RunBusy, UserError
from xwin.run.secrets import hidden
from xwin.run.storage import Seal, check_seal, files_of, seal, storage_errors, sync, write_atomic


@dataclass(frozen=True, slots=True)
class StageRecord:
    """The manifest.json of a stage."""

    stage: str
    kind: str
    fingerprint: str
    status: Literal["running", "published"]
    inputs: Mapping[str, str]
    """Reference as written -> digest."""
    settings: Mapping[str, Any]
    started: float
    """Unix seconds, of the first attempt."""
    finished: float | None = None
    seconds: float | None = None
    """Wall time of the attempt that finished it."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output -> digest of its file, or of the names and digests of its folder's files."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metric -> last value."""
    seals: Mapping[str, Seal] = field(default_factory=dict)
    """Path in the stage's folder -> what the file was when it was published."""

    def to_json(self) -> str:
        """Indented, keys in the order of the fields; without secrets."""
        return hidden(json.dumps(asdict(self), indent=2, ensure_ascii=False)) + "\n"


@dataclass(frozen=True)
class StageDirectory:
    """The folder of one stage."""

    folder: Path
    name: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Output -> its file or folder name."""

    def out(self, output: str) -> Path:
        """Where an output of the stage goes: a folder for models, a file for data and reports.

        Raises:
            LookupError: the stage has no such output; our bug.
        """
        if output not in self.files:
            raise LookupError(f"stage '{self.name}' makes {sorted(self.files)}, not '{output}'")
        return self.folder / self.files[output]

    @property
    def checkpoints(self) -> Path:
        """Holds `step-000400/` folders; gone once the stage is published."""
        return self.folder / "checkpoints"

    @property
    def events(self) -> Path:
        """One event a line; see run/events.py."""
        return self.folder / "events.jsonl"

    @property
    def alarms(self) -> Path:
        """One guard alarm a line: step, metric, value, threshold, action."""
        return self.folder / "alarms.jsonl"

    @property
    def rollouts(self) -> Path:
        """Finished generation blocks, one rollout a line."""
        return self.folder / "rollouts.jsonl"

    @property
    def manifest(self) -> Path:
        """Says which stage this is and whether it is published."""
        return self.folder / "manifest.json"

    def record(self) -> StageRecord | None:
        """The manifest, or None before the first attempt.

        Raises:
            CheckpointError: the manifest cannot be read.
        """
        try:
            values = json.loads(self.manifest.read_text(encoding="utf-8"))
            seals = {path: Seal(**value) for path, value in values.pop("seals").items()}
            return StageRecord(**values, seals=seals)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = f"remove the folder {self.folder} to run the stage again"
            raise CheckpointError("is not the manifest of a stage", str(self.manifest), fix) from error

    def archived(self, fingerprint: str) -> StageDirectory:
        """Where this stage lies after it was superseded."""
        return replace(self, folder=self.folder.parent / ".old" / f"{self.name}-{fingerprint[:8]}")

    def find(self, fingerprint: str) -> StageRecord | None:
        """The record of this fingerprint: here, or among the superseded if it was finished there.

        Raises:
            CheckpointError: a manifest cannot be read.
        """
        here, old = self.record(), self.archived(fingerprint).record()
        if here is not None and here.fingerprint == fingerprint:
            return here
        return old if old is not None and old.fingerprint == fingerprint and old.status == "published" else None

    def begin(self, record: StageRecord) -> StageRecord:
        """Makes the folder ready for `record`. The same fingerprint goes on where it stopped, another one is moved to `.old`.

        Returns:
            The record now in force; it is "published" if a superseded stage with this fingerprint came back.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
            CheckpointError: a manifest cannot be read.
        """
        with storage_errors(self.folder):
            found, here = self.find(record.fingerprint), self.record()
            if here is not None and here.fingerprint == record.fingerprint:
                return here
            if self.folder.exists():
                self._archive(here)
            if found is not None:
                self.archived(record.fingerprint).folder.rename(self.folder)
                return found
            self.folder.mkdir(parents=True)
            write_atomic(self.manifest, record.to_json())
        return record

    def publish(self, metrics: Mapping[str, float], *, seconds: float) -> StageRecord:
        """Seals the outputs, then replaces the manifest: from then on the stage is finished. Checkpoints go last.

        Raises:
            Failure: an output is missing.
            StorageError: the disk is full, read-only, or permission is missing.
        """
        record = self.record()
        missing = [name for name in self.files if not files_of(self.out(name))]
        if record is None or missing:
            raise Failure("finished without its " + (f"output '{missing[0]}'" if missing else "manifest"), f"stage '{self.name}'")
        with storage_errors(self.folder):
            seals = {p.relative_to(self.folder).as_posix(): seal(p) for name in self.files for p in files_of(self.out(name))}
            outputs = {name: self._digest(name, seals) for name in self.files}
            for folder in {(self.folder / path).parent for path in seals}:
                sync(folder)
            done = replace(record, status="published", finished=time.time(), seconds=seconds, outputs=outputs, metrics=dict(metrics), seals=seals)
            write_atomic(self.manifest, done.to_json())
            self.tidy()
        return done

    def verify(self) -> None:
        """Checks that the outputs of a published stage are what was published. Reads only files whose time of change differs.

        Raises:
            CheckpointError: names the file that is missing or was changed.
        """
        record = self.record()
        for path, expected in (record.seals if record else {}).items():
            check_seal(self.folder / path, expected)

    def tidy(self) -> None:
        """Removes what a published stage no longer needs: its checkpoints, and drafts of files that a killed attempt did not finish."""
        if self.checkpoints.exists():
            shutil.rmtree(self.checkpoints)
        for draft in self.folder.glob(".*.tmp"):
            if draft.is_file():
                draft.unlink()

    def _archive(self, record: StageRecord | None) -> None:
        """Moves the folder to `.old`; one that lay there with the same fingerprint goes."""
        place = self.archived(record.fingerprint if record else "unfinished").folder
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
        self.folder.rename(place)

    def _digest(self, output: str, seals: Mapping[str, Seal]) -> str:
        name = self.files[output]
        if name in seals:
            return seals[name].sha256
        lines = [f"{path.removeprefix(name + '/')} {found.sha256}\n" for path, found in sorted(seals.items()) if path.startswith(name + "/")]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class RunDirectory:
    """A run on disk."""

    path: Path

    def stage(self, name: str, files: Mapping[str, str]) -> StageDirectory:
        """The folder of a stage, made or not. `files`: output -> its file or folder name."""
        return StageDirectory(self.path / "stages" / name, name, files)

    def template(self, stage: str) -> str:
        """The chat template that a stage's models were taught: its own setting, else that of what it started from, in the end that of the
        recipe's entry; "" where the run does not say.

        Raises:
            CheckpointError: a manifest cannot be read.
        """
        name = stage
        while name and (record := self.stage(name, {}).record()) is not None:
            if "template" in record.settings:
                return str(record.settings["template"])
            name = str(record.settings.get("init", "")).partition("/")[0]
        models = read_object(self.path / "recipe.resolved.json").get("models", {})
        return str(models.get(name, {}).get("template", ""))

    @contextmanager
    def locked(self) -> Iterator[str]:
        """Makes the directory and holds its lock. The lock of a process that died is free by itself.

        Gives who held it before and left without a word, killed or cut off: "process 4711 on host x"; empty when nobody did.

        Raises:
            RunBusy: another process works here; names its pid and host.
            UserError: the path is something else than a run.
            StorageError: read-only, full, or permission is missing.
        """
        owner = self.path / ".lock.json"
        with storage_errors(self.path):
            self._require_run()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = f" by {_owner(owner)}" if _owner(owner) else ""
                raise RunBusy(f"is in use{who}", str(self.path), "wait for that process or stop it, or choose another --dir") from None
        try:
            before = _owner(owner)
            write_atomic(owner, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": round(time.time())}) + "\n")
            yield before
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def describe(self, recipe: str, resolved: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Writes recipe.yaml (as given but for secrets), recipe.resolved.json and manifest.json.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
        """
        write_atomic(self.path / "recipe.yaml", hidden(recipe))
        for name, values in (("recipe.resolved.json", resolved), ("manifest.json", manifest)):
            write_atomic(self.path / name, hidden(json.dumps(values, indent=2, ensure_ascii=False)) + "\n")

    def gather_events(self, stages: Sequence[str]) -> None:
        """Rewrites events.jsonl from the published stages, in this order.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
        """
        parts = []
        for stage in (self.stage(name, {}) for name in stages):
            record = stage.record()
            if record is not None and record.status == "published" and stage.events.exists():
                parts.append(stage.events.read_text(encoding="utf-8"))
        write_atomic(self.path / "events.jsonl", "".join(parts))

    def _require_run(self) -> None:
        marks = ("manifest.json", ".lock", "stages")
        if self.path.is_dir() and any(self.path.iterdir()) and not any((self.path / mark).exists() for mark in marks):
            raise UserError("is a folder with other things in it, not a run", str(self.path), "choose an empty or new folder with --dir")
        if self.path.exists() and not self.path.is_dir():
            raise UserError("is a file", str(self.path), "choose a folder with --dir")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _owner(path: Path) -> str:
    """ "process 4711 on host x", or nothing when there is none, or it has not written it yet."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
