"""A recipe of two short training stages, and what tests of it share."""

import shutil
from pathlib import Path

from .chain import content
from .forks import Attempt

SHORT = """\
name: short
models:
  base: {path: "random:2x64"}
stages:
  taste: {kind: reward_model, init: base, data: ./pairs.jsonl, checkpoint_every: 0}
  sft: {kind: sft, init: base, data: ./held.jsonl, validation: ./held.jsonl, epochs: 5, eval_every: 2, tokens_per_step: 512, checkpoint_every: 0}
"""


def copied(run: Path, recipe: Path) -> Path:
    """A copy beside the recipe, with the times of its files."""
    return Path(shutil.copytree(run, recipe.parent / "run"))


def message(attempt: Attempt, code: int) -> str:
    """The one message an attempt ended with."""
    assert attempt.status == code, attempt.said
    assert "Traceback" not in attempt.said
    assert attempt.said.count("error: ") == 1
    return attempt.said[attempt.said.index("error: ") :]


def content_of(run: Path) -> dict[str, object]:
    """`chain.content`, of a run that need not be finished."""
    (run / "events.jsonl").touch()
    return content(run)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(1 << 16))
        except OSError:
            return filler
