"""Foundation tasks (MMLU, ARC, HellaSwag, TruthfulQA, GSM8K, IFEval) by EleutherAI's lm-eval, computed by our own network and engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, MinLen

from xwin.errors import MissingExtra
from xwin.run.artifacts import ConversationsRef
from xwin.suites._harness_data import Asked
from xwin.suites.base import Evidence, Row, Suite

if TYPE_CHECKING:
    from xwin.models.causal import PackedModel
    from xwin.suites._harness_tasks import Loaded

TaskName = Literal["mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc2", "gsm8k", "ifeval"]


class Harness(Suite):
    """Prompts, shots and scoring are lm-eval's; every row has its standard error, 95 % interval and n. MMLU is given as the mean over subjects
    (the 2023 leaderboard) and as the mean over documents (lm-eval today)."""

    tasks: Annotated[tuple[TaskName, ...], MinLen(1)] = ("mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc2")
    """Which tasks: MMLU 5-shot, ARC-Challenge 25-shot, HellaSwag 10-shot, TruthfulQA mc2, GSM8K 5-shot, IFEval."""

    data: ConversationsRef | None = None
    """Folder that holds their rows, laid out as docs/evaluation.md says; null = the hub."""

    limit: Annotated[int, Ge(1)] | None = None
    """Rows of each task, of MMLU of each subject, the first ones; null = all."""

    chat: bool = False
    """Whether prompts are written in the chat template of the model's tokenizer. The published tables of base models are without."""

    reads_answers: ClassVar[bool] = False

    def least_rows(self) -> int:
        return 1

    def distinct(self) -> frozenset[str]:
        return frozenset(self.tasks)

    def measure(self, evidence: Evidence) -> list[Row]:
        workshop = evidence.workshop
        assert workshop is not None
        asked = self._asked(evidence)
        rows: dict[str, list[Row]] = {}
        for name, ref in evidence.models.items():
            if ref not in rows:  # two rows of one network, asked in two templates, say, are one here
                rows[ref] = evaluate_model(name, workshop.network(ref), workshop.path(ref), load(asked), asked)
        return [replace(row, model=name) for name, ref in evidence.models.items() for row in rows[ref]]

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        loaded = load(self._asked(evidence))
        from xwin.suites._harness_tasks import questions

        return questions(loaded, self.limit)

    def _asked(self, evidence: Evidence) -> Asked:
        assert evidence.workshop is not None
        folder = evidence.workshop.path(self.data) if self.data is not None else None
        return Asked(self.tasks, folder, self.limit, self.chat)


def load(asked: Asked) -> Loaded:
    """The tasks with their rows. They keep what was answered: each model needs its own.

    Raises:
        MissingExtra: lm-eval is not installed.
        DataError: rows of a task are missing or cannot be used.
        UserError: the hub cannot be reached, or a task needs what is not here.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("lm_eval", "eval")
    from xwin.suites._harness_tasks import load_tasks

    return load_tasks(asked)


def evaluate_model(name: str, model: PackedModel, folder: Path, loaded: Loaded, asked: Asked) -> list[Row]:
    """The rows of a model.

    Args:
        name: of the model in the table.
        model: a language model.
        folder: where its tokenizer lies.
        loaded: tasks that no model was asked yet.
        asked: what `loaded` was made of.

    Raises:
        ModelError: a continuation is longer than the model can read.
        UserError: a task asks for a way to draw text that the engine does not have.
    """
    from xwin.suites._harness_model import PackedLM
    from xwin.suites._harness_rows import task_rows
    from xwin.suites._harness_tasks import answer, quiet

    with quiet():
        harnessed = PackedLM(model, folder)  # pyright: ignore[reportAbstractUsage] - lm-eval's decorator hides its class
    return task_rows(name, answer(harnessed, loaded, asked), loaded.categories)
