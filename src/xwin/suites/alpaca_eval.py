"""AlpacaEval of every model: its answers to given instructions, judged against given outputs of another model."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, NamedTuple

from annotated_types import Ge

from xwin.data.conversation import Conversation, Message, content_id
from xwin.engines.base import Chat, Sampling
from xwin.errors import DataError, MissingExtra
from xwin.run.artifacts import ConversationsRef
from xwin.run.facts import ALPACA, ALPACA_CONTROLLED, ALPACA_LENGTH
from xwin.run.statistics import mean_interval, paired_means
from xwin.scorers._pairwise import ChatJudge
from xwin.scorers.judge import Judge
from xwin.suites._alpaca_controlled import LengthControl
from xwin.suites._alpaca_labels import Labels, credits_of_both
from xwin.suites._alpaca_tables import instructions
from xwin.suites._alpaca_win_rate import standing
from xwin.suites._judged_pairs import Account, Judged, account, annotation_rows, judged_pairs, labels_of
from xwin.suites._outputs import Outputs, pick_outputs, read_outputs
from xwin.suites.base import Evidence, Row, Suite, Workshop


class AlpacaEval(Suite):
    """Win rate against the outputs of a file, text-davinci-003's for instance, by a judge: with standard error, 95 % interval (bootstrap over
    instructions), counts, mean length of the answers, and a paired t test against `before`; with `tables` the length-controlled rate too. Every row
    answers once: `n` and `scorer` of a row are not used. Against several models it is a suite for each. What the judge said stands beside the table
    in alpaca_eval's layout.
    Dubois et al. 2023, arXiv:2305.14387; docs/evaluation.md has the formulas."""

    data: ConversationsRef
    """Instructions and the outputs to beat, of one model: alpaca_eval's model_outputs.json (instruction, output, generator), or conversations."""

    judge: Judge
    """Who compares."""

    first: Annotated[int, Ge(1)] | None = None
    """How many instructions, the first ones; null = all."""

    tables: ConversationsRef | None = None
    """Folder of AlpacaEval's public tables (docs/evaluation.md), for the length-controlled win rate; null = without it. Knows AlpacaEval's own
    instructions only."""

    sampling: Sampling = Sampling(temperature=0.7, max_tokens=2048)
    """How the models answer."""

    reads_answers: ClassVar[bool] = False

    def least_rows(self) -> int:
        return 1

    def distinct(self) -> frozenset[str]:
        return frozenset({self.data})

    def measure(self, evidence: Evidence) -> list[Row]:
        shop, talk = evidence.workshop, evidence.talk
        assert shop is not None
        assert talk is not None
        reference = self._reference(shop)
        control = self._control(shop, reference)
        outputs = {name: self._answered(shop, talk, name, reference) for name in evidence.models}
        judge = self.judge.over(shop)
        labels: dict[str, Labels] = {}
        rows = []
        for name, mine in outputs.items():
            judged = _judged(shop, judge, reference, mine)
            shop.leave(f"alpaca_eval-{reference.model}-{name}.json", annotation_rows(judged, reference.model, name, judge.name))
            labels[name] = labels_of(judged, name, mine.source)
            before = evidence.before.get(name)
            test = paired_means(*credits_of_both(labels[before], labels[name])) if before else None
            row = _row(labels[name], account(judged), reference.model)
            rows += [replace(row, p=test.p, against=before) if test else row, _length_row(mine, reference.model)]
            rows += [_controlled_row(control, labels[name], reference.model, shop.seed("alpaca_lc"))] if control else []
        return rows

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        reference = self._reference(evidence.workshop)
        return {f"{ALPACA}{reference.model}": list(reference.texts)}

    def _reference(self, shop: Workshop) -> Outputs:
        """The outputs to beat."""
        path = shop.path(self.data)
        whole = pick_outputs(read_outputs(path, {}), "", str(path))
        return replace(whole, texts=dict(list(whole.texts.items())[: self.first]))

    def _control(self, shop: Workshop, reference: Outputs) -> _Control | None:
        """What length control needs, looked at before anybody is asked anything.

        Raises:
            DataError: a table is missing, or an instruction is none of AlpacaEval's.
            MissingExtra: scikit-learn is not installed.
        """
        if self.tables is None:
            return None
        if importlib.util.find_spec("sklearn") is None:
            raise MissingExtra("scikit-learn", "eval")
        folder = shop.path(self.tables)
        numbers = instructions(folder).numbers
        strange = [text for text in reference.texts if text not in numbers]
        if strange:
            what = f"{len(strange)} of {len(reference.texts)} instructions are none of AlpacaEval's and have no difficulty, first {strange[0][:60]!r}"
            raise DataError(what, reference.source, "judge AlpacaEval's instructions, or leave `tables` out")
        return _Control(LengthControl.read(folder), numbers)

    def _answered(self, shop: Workshop, talk: Callable[[str], Chat], name: str, reference: Outputs) -> Outputs:
        """A model's answers.

        Raises:
            DataError: it could not answer one.
        """
        said = [(text, (Message("user", text),)) for text in reference.texts]
        asked = [Conversation(content_id(messages), messages) for _, messages in said]
        texts: dict[str, str] = {}
        with shop.asking(f"alpaca_eval, {name}", len(said)) as told:
            for (text, _), reply in zip(said, talk(name).reply(asked, self.sampling, seed=shop.seed("alpaca_eval")), strict=True):
                if reply.finish == "error":
                    raise DataError(f"{name} could not answer: {reply.note}", f"instruction {text[:60]!r}", "lower sampling.max_tokens")
                texts[text] = reply.text
                told(1)
        return Outputs(name, reference.source, texts)


class _Control(NamedTuple):
    """Length control, and the numbers by which it knows instructions."""

    tables: LengthControl
    numbers: Mapping[str, int]


def _judged(shop: Workshop, judge: ChatJudge, reference: Outputs, mine: Outputs) -> Judged:
    with shop.asking(f"{judge.name} on {mine.model}", len(mine.texts) * (1 + (judge.orders == "both"))) as told:
        return judged_pairs(reference, mine, judge, told)


def _row(labels: Labels, about: Account, against: str) -> Row:
    """The win rate; its note says what it is made of, and what could not be read."""
    found = standing(labels)
    low, high = (math.nan if end is None else end / 100 for end in (found.low, found.high))
    stderr = None if found.standard_error is None else found.standard_error / 100
    said = [f"{found.n_wins} won, {found.n_wins_base} lost, {found.n_draws} equal"]
    said += [f"{about.n_unread} judgements could not be read and are left out"] if about.n_unread else []
    said += [f"${about.usd:.2f}"] if about.usd else []
    return Row(labels.model, f"{ALPACA}{against}", found.win_rate / 100, low, high, found.n_total or 0, note="; ".join(said), stderr=stderr)


def _length_row(outputs: Outputs, against: str) -> Row:
    """Mean code points of the answers: what a win rate has to be looked at beside."""
    chars = [float(len(text)) for text in outputs.texts.values()]
    return Row.of(outputs.model, f"{ALPACA_LENGTH}{against}", mean_interval(chars, bounds=(0.0, math.inf)))


def _controlled_row(control: _Control, labels: Labels, against: str, seed: int) -> Row:
    """The length-controlled win rate; its interval is of refits over instructions drawn anew."""
    numbered = replace(labels, rows=tuple(replace(row, key=control.numbers[str(row.key)]) for row in labels.rows))
    found = control.tables.apply(numbered, standing(labels))
    low, high = (end / 100 for end in control.tables.interval(numbered, found, seed))
    note = "; ".join(text for text in (found.source, found.note) if text)
    n = sum(row.credit is not None for row in labels.rows)
    metric, error = f"{ALPACA_CONTROLLED}{against}", found.standard_error / 100
    return Row(labels.model, metric, found.win_rate / 100, low, high, n, note=note, stderr=error)
