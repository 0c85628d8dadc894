"""Foundation tasks as lm-eval's own task files describe them: which, with how many shots, over rows of the hub or of a folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import nltk
from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from xwin.errors import DataError, MissingExtra, UserError
from xwin.suites._harness_data import LAYOUTS, Asked, Row, read_split

SHOTS: Mapping[str, int] = {"mmlu": 5, "arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "gsm8k": 5, "ifeval": 0}
"""Worked examples before each question: those of the 2023 Open LLM Leaderboard, and lm-eval's own for GSM8K and IFEval."""
FOLDERS = ("mmlu/default", "arc", "hellaswag", "truthfulqa", "gsm8k", "ifeval")
"""Of lm-eval's task files. All of them would be some thousands."""
CATEGORIES: Mapping[str, str] = {
    "stem": "mmlu_stem_tasks",
    "humanities": "mmlu_humanities_tasks",
    "social sciences": "mmlu_social_sciences_tasks",
    "other": "mmlu_other_tasks",
}
"""Of MMLU's subjects -> lm-eval's tag."""
SHOT_SEED = 1234
"""lm-eval's default: which shots a question gets is drawn from it, question by question."""
ASKED = ("question", "query", "prompt")
"""Fields that hold what a row asks, the first that there is."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks with their rows."""

    tasks: Mapping[str, ConfigurableTask]
    """By lm-eval's names; MMLU is one for each subject."""
    categories: Mapping[str, str]
    """MMLU's subjects -> category."""


def load_tasks(asked: Asked) -> Loaded:
    """The tasks, ready to be asked.

    Raises:
        DataError: the folder lacks a file, or a row something.
        UserError: the rows cannot be had from the hub, or NLTK's sentence splitter, which IFEval needs, is not there.
    """
    root = Path(lm_eval.tasks.__path__[0])
    with quiet():
        manager = TaskManager(include_path=[root / name for name in FOLDERS], include_defaults=False)
        index = manager.task_index
        mmlu = {task: category for category, tag in CATEGORIES.items() for task in sorted(index[tag].tags)}
        settings = [each for name in asked.tasks for each in _settings(name, asked.folder, mmlu)]
        if "ifeval" in asked.tasks:
            _require_ifeval(asked.folder)
        try:
            loaded = manager.load({"group": "asked", "task": settings})["tasks"]
        except (OSError, ValueError, DatasetNotFoundError) as error:
            if asked.folder is not None:
                raise
            what = f"the rows cannot be had from the hub: {str(error).splitlines()[0]}"
            raise UserError(what, ", ".join(asked.tasks), "name a folder that holds them; see the layout in docs/evaluation.md") from error
    for task in loaded.values():
        task.set_fewshot_seed(SHOT_SEED)
    return Loaded(loaded, mmlu)  # type: ignore[arg-type]


def answer(model: LM, loaded: Loaded, asked: Asked) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Task -> lm-eval's record of each row: the document, what was answered, and its metrics."""
    with quiet():
        found = evaluate(
            lm=model,
            task_dict={"tasks": dict(loaded.tasks)},
            limit=asked.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=True,
        )
    assert found is not None and "samples" in found
    return found["samples"]


def questions(loaded: Loaded, limit: int | None) -> dict[str, list[str]]:
    """What each task asks: MMLU's subjects together."""
    texts: dict[str, list[str]] = {}
    for name, task in loaded.tasks.items():
        rows: list[Any] = list(task.eval_docs)[:limit]
        texts.setdefault("mmlu" if name in loaded.categories else name, []).extend(_question(row) for row in rows)
    return texts


def _question(row: Mapping[str, Any]) -> str:
    return next(str(row[name]) for name in ASKED if name in row)


def _settings(name: str, folder: Path | None, mmlu: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What is changed in lm-eval's task file, or files: the number of shots, and where the rows are."""
    shots = {"num_fewshot": SHOTS[name]}
    if folder is None:
        yield from ({"task": each, **shots} for each in (mmlu if name == "mmlu" else [name]))
        return
    rows = {split: read_split(folder, LAYOUTS[name], split) for split in LAYOUTS[name].splits}
    here = {split: found for split, found in rows.items() if found is not None}
    if name == "mmlu":
        yield from ({"task": each, **shots, "custom_dataset": _dataset(_of_subject(here, each, folder))} for each in mmlu)
        return
    without = {"training_split": None} if "train" not in here and name == "hellaswag" else {}
    yield {"task": name, **shots, **without, "custom_dataset": _dataset(here)}


def _of_subject(rows: Mapping[str, Sequence[Row]], task: str, folder: Path) -> dict[str, list[Row]]:
    subject = task.removeprefix("mmlu_")
    found = {split: [row for row in mine if row["subject"] == subject] for split, mine in rows.items()}
    for split, mine in found.items():
        if not mine:
            raise DataError(f"mmlu/{split} has no row of the subject {subject}", str(folder), "all 57 subjects are needed")
    return found


def _dataset(rows: Mapping[str, Sequence[Row]]) -> Any:
    """What lm-eval calls for the rows instead of loading them from the hub."""
    return lambda **_: {split: datasets.Dataset.from_list(list(mine)) for split, mine in rows.items()}


def _require_ifeval(folder: Path | None) -> None:
    """IFEval guesses languages, and counts sentences by NLTK, whose model is data and comes apart from the package."""
    for package in ("langdetect", "immutabledict"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "eval")
    if folder is not None and (folder / "nltk_data").is_dir() and str(folder / "nltk_data") not in nltk.data.path:
        nltk.data.path.append(str(folder / "nltk_data"))
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        fix = "python -m nltk.downloader punkt_tab, or put it into nltk_data/tokenizers of the folder of the rows"
        raise UserError("NLTK's punkt_tab, by which sentences are counted, is not here", "ifeval", fix) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and what it uses raise, but say nothing: it draws a progress bar per task, and warns of what is meant."""
    names = ("lm_eval", "datasets", "transformers")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
