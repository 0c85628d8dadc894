"""AlpacaEval of every model: its answers to given instructions, judged against given outputs of another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

from annotated_types import Ge

from xwin.data.conversation import Conversation, Message, content_id
from xwin.engines.base import Chat, Sampling
from xwin.errors import DataError
from xwin.run.artifacts import ConversationsRef
from xwin.run.statistics import paired_means
from xwin.scorers._pairwise import ChatJudge
from xwin.scorers.judge import Judge
from xwin.suites._alpaca_labels import Labels, credits_of_both
from xwin.suites._alpaca_win_rate import standing
from xwin.suites._judged_pairs import Account, account, judged_pairs, labels_of
from xwin.suites._outputs import Outputs, pick_outputs, read_outputs
from xwin.suites.base import Evidence, Row, Suite, Workshop


class AlpacaEval(Suite):
    """Win rate against the outputs of a file, text-davinci-003's for instance, by a judge: with standard error, 95 % interval (bootstrap over
    instructions), counts, and a paired t test against `before`. Every row answers once: `n` and `scorer` of a row are not used.
    Dubois et al. 2023, arXiv:2305.14387; docs/evaluation.md has the formulas."""

    data: ConversationsRef
    """Instructions and the outputs to beat, of one model: alpaca_eval's model_outputs.json (instruction, output, generator), or conversations."""

    judge: Judge
    """Who compares."""

    first: Annotated[int, Ge(1)] | None = None
    """How many instructions, the first ones; null = all."""

    sampling: Sampling = Sampling(temperature=0.7, max_tokens=2048)
    """How the models answer."""

    reads_answers: ClassVar[bool] = False

    def least_rows(self) -> int:
        return 1

    def measure(self, evidence: Evidence) -> list[Row]:
        shop, talk = evidence.workshop, evidence.talk
        assert shop is not None
        assert talk is not None
        reference = self._reference(shop)
        outputs = {name: self._answered(shop, talk, name, reference) for name in evidence.models}
        judge = self.judge.over(shop)
        labels: dict[str, Labels] = {}
        rows = []
        for name, mine in outputs.items():
            found, about = _judged(shop, judge, reference, mine)
            before = evidence.before.get(name)
            rows.append(_row(found, about, reference.model))
            if before:
                test = paired_means(*credits_of_both(labels[before], found))
                rows[-1] = replace(rows[-1], p=test.p, against=before)
            labels[name] = found
        return rows

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        return {"alpaca_eval": list(self._reference(evidence.workshop).texts)}

    def _reference(self, shop: Workshop) -> Outputs:
        """The outputs to beat."""
        path = shop.path(self.data)
        whole = pick_outputs(read_outputs(path, {}), "", str(path))
        return replace(whole, texts=dict(list(whole.texts.items())[: self.first]))

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


def _judged(shop: Workshop, judge: ChatJudge, reference: Outputs, mine: Outputs) -> tuple[Labels, Account]:
    with shop.asking(f"{judge.name} on {mine.model}", len(mine.texts) * (1 + (judge.orders == "both"))) as told:
        judged = judged_pairs(reference, mine, judge, told)
    return labels_of(judged, mine.model, mine.source), account(judged)


def _row(labels: Labels, about: Account, against: str) -> Row:
    """The win rate; its note says against whom, what it is made of, and what could not be read."""
    found = standing(labels)
    low, high = (math.nan if end is None else end / 100 for end in (found.low, found.high))
    stderr = None if found.standard_error is None else found.standard_error / 100
    said = [f"against {against}: {found.n_wins} won, {found.n_wins_base} lost, {found.n_draws} equal; {found.avg_length} characters on average"]
    said += [f"{about.n_unread} judgements could not be read and are left out"] if about.n_unread else []
    said += [f"${about.usd:.2f}"] if about.usd else []
    return Row(labels.model, "alpaca_eval", found.win_rate / 100, low, high, found.n_total or 0, note="; ".join(said), stderr=stderr)
