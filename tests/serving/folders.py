"""Folders of models that tests change, and finished stages of runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xwin.run.directory import RunDirectory, StageDirectory, StageRecord


def copied(folder: Path, to: Path, **config: Any) -> Path:
    """A copy whose config.json says something else."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def published(run: Path, name: str, kind: str, model: Path | None, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> StageDirectory:
    """A stage of a run, finished as the program finishes one."""
    stage = RunDirectory(run).stage(name, {"final": "final"} if model else {})
    stage.begin(StageRecord(name, kind, name.ljust(64, "0"), "running", inputs, settings, 0.0))
    if model is not None:
        shutil.copytree(model, stage.out("final"))
    stage.publish({}, seconds=12.0)
    return stage
