"""How far a judge is to be trusted: against the votes of people, and against itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Self

from annotated_types import Ge, MinLen
from pydantic import model_validator

from xwin.engines.base import EngineKind
from xwin.run.artifacts import ModelRef, PreferencesRef, RewardModelRef
from xwin.run.statistics import Interval
from xwin.scorers._pairwise import Judging, Style
from xwin.scorers._reward_judge import RewardJudge
from xwin.scorers.judge import Judge
from xwin.suites._judge_quality import LONGEST, Quality, Report, report
from xwin.suites._judge_votes import asked_now, questions_for, read_votes
from xwin.suites.base import Evidence, Row, Suite, Workshop

COLUMNS: Mapping[str, str] = {
    "agreement": "judge_agreement",
    "kappa": "judge_kappa",
    "prefers_first": "judge_first",
    "prefers_longer": "judge_longer",
    "consistent": "judge_consistent",
    "variance": "judge_variance",
}
"""Of Quality -> metric; all but kappa are percent there and shares here."""


class JudgeQuality(Suite):
    """Agreement of judges with what most people voted, Cohen's kappa, their votes for the output shown first and for the longer one, agreement of
    both orders, and variance, each with its 95 % interval over pairs: on PandaLM's test set, LLMBar or AlpacaFarm's pairs judged again. Beside them
    the judges whose votes the files hold, and `the longer output`, which any judge must beat."""

    sets: Annotated[dict[str, PreferencesRef], MinLen(1)]
    """Name -> file of pairs and votes, as docs/evaluation.md says."""

    engine: EngineKind | None = None
    """Who is asked, in both orders: `{kind: remote, model: ...}`, or an engine of ours over `model`; null = nobody."""

    model: ModelRef | None = None
    """The judge, where the engine runs one of ours; null = the engine knows."""

    style: Style = "ranking"
    """ranking: the judge writes who is first (AlpacaEval 1); token: the probabilities of its one-letter answer count (AlpacaEval 2)."""

    retries: Annotated[int, Ge(0)] = 2
    """How often the judge is asked again when its answer cannot be read."""

    seeds: Annotated[int, Ge(2)] | None = None
    """Seeds under which the judge is asked again, each in an order of its own, for its variance; null = its variance is not measured."""

    reward_model: RewardModelRef | None = None
    """A reward model that judges too: the output of the higher reward is the better one; null = none."""

    reads_answers: ClassVar[bool] = False

    @model_validator(mode="after")
    def _an_engine_asks_it(self) -> Self:
        if self.engine is None and self.model is not None:
            raise ValueError("an engine must ask the model: add engine: {kind: local}")
        return self

    def distinct(self) -> frozenset[str]:
        return frozenset(f"{self.engine}, {self.model}, {self.reward_model} on {name}" for name in self.sets)

    def measure(self, evidence: Evidence) -> list[Row]:
        shop = evidence.workshop
        assert shop is not None
        sets = {name: read_votes(shop.path(ref)) for name, ref in self.sets.items()}
        judges = list(self._judges(shop))
        rows: list[Row] = []
        for name, votes in sets.items():
            own = []
            for judge in judges:
                with shop.asking(f"{judge.name} on {name}", questions_for(judge, votes.pairs, self.seeds)) as told:
                    own.append(asked_now(judge, votes.pairs, told, seeds=self.seeds))
            rows += _rows(name, report(votes, own), {judge.name for judge in judges} | {LONGEST})
        return rows

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        path = evidence.workshop.path
        return {name: [pair.instruction for pair in read_votes(path(ref)).pairs] for name, ref in self.sets.items()}

    def _judges(self, shop: Workshop) -> Iterator[Judging]:
        if self.engine is not None:
            yield Judge(engine=self.engine, model=self.model, style=self.style, orders="both", retries=self.retries).over(shop)
        if self.reward_model is not None:
            yield RewardJudge(self.reward_model, shop.frozen_scorer(self.reward_model), shop.template(self.reward_model))


def _rows(name: str, found: Report, asked: set[str]) -> Iterator[Row]:
    """How far people agree, and each judge's rows; of parts of the set too, if it was asked now or is the baseline."""
    for pair, kappa in found.people.items():
        first, second = pair.removeprefix("kappa_")
        told = f"published, of all {found.n_full} pairs: {found.people_published[pair]:g}" if pair in found.people_published else ""
        yield Row.of(f"people {first} and {second}", f"judge_kappa/{name}", kappa, note=told)
    for quality in found.judges:
        if not quality.part or quality.judge in asked:
            yield from _judge_rows(f"{name}/{quality.part}" if quality.part else name, quality, found)


def _judge_rows(name: str, quality: Quality, found: Report) -> Iterator[Row]:
    """What the set can say of the judge; the first row has the note."""
    note = _note(quality, found)
    for field, metric in COLUMNS.items():
        interval: Interval | None = getattr(quality, field)
        if interval is not None:
            yield Row.of(quality.judge, f"{metric}/{name}", interval if field == "kappa" else interval.scaled(0.01), note=note)
            note = ""


def _note(quality: Quality, found: Report) -> str:
    """What could not be read, and what was published: of the whole set, which cannot be reproduced from a part of it."""
    told = ", ".join(f"{name} {value:g}" for name, value in quality.published.items())
    where = "" if found.n_pairs == found.n_full else f" of all {found.n_full} pairs, not reproducible from the {found.n_pairs} that are here"
    said = [f"{quality.n_unread} votes could not be read and count as equal"] if quality.n_unread else []
    return "; ".join([*said, *([f"published{where}: {told}"] if told else [])])
