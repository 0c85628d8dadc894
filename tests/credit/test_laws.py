"""What must hold for every credit in the folder; a new file is found by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from xwin.credit.base import Columns, Credit, Credited
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score
from xwin.ops import ESTIMATORS
from xwin.spec import lookup, names

CORRECTIONS: list[dict[str, Any]] = [
    {"correction": {"kind": "truncate", "cap": 1.1}},
    {"correction": {"kind": "truncate", "over": "answer"}},
    {"correction": {"kind": "mask", "low": 0.9, "high": 1.2}},
    {"correction": {"kind": "mask", "over": "answer"}},
]
VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "gae": [{"lam": 0.0, "gamma": 0.9}, {"lam": 1.0}],
    "group": [{"scale": "none"}, {"baseline": "leave_one_out"}, {"baseline": "leave_one_out", "scale": "none"}],
    "round": [{"baseline": "mean"}],
}
"""Other settings that the laws must hold for, beside the corrections, which every credit has."""
CREDITS = [lookup(Credit, name)(**settings) for name in names(Credit.package) for settings in [{}, *VARIANTS.get(name, []), *CORRECTIONS]]
ALONE = [c for c in CREDITS if c.kind in {"group", "distil"}]
"""Where what a group is taught does not depend on the other groups of the round."""
COMPARING = [c for c in CREDITS if c.kind in {"group", "round"}]
"""Where a score counts only beside others."""
PRICED = [c for c in CREDITS if c.kind != "distil"]
"""Where scores count, and KL has a price."""


def name(credit: Credit) -> str:
    """In the list of tests."""
    return f"{credit.kind} {credit.settings()}"


every = pytest.mark.parametrize("credit", CREDITS, ids=name)
priced = pytest.mark.parametrize("credit", PRICED, ids=name)


def groups(*, prompts: int = 4, answers: int = 3, scores: Sequence[float] | None = None) -> list[Group]:
    """Answers of 1 to 6 tokens; the engine's log-probs differ from the learner's."""
    random, found = torch.Generator().manual_seed(1), []
    for p in range(prompts):
        rollouts = []
        for k in range(answers):
            size = 1 + (2 * p + 3 * k) % 6
            logp = tuple((-torch.rand(size, generator=random)).tolist())
            score = float(scores[p * answers + k]) if scores else float(torch.randn((), generator=random))
            rollouts.append(Rollout(f"q{p}", k, 0, (1, 2, 3), tuple(range(10, 10 + size)), logp, "stop", Score(score)))
        found.append(Group(Conversation(f"q{p}", (Message("user", "?"),)), tuple(rollouts), ("",) * answers))
    return found


def columns(some: Sequence[Group], *, gap: float = 0.3, seed: int = 0) -> dict[str, list[tuple[float, ...]]]:
    """Every column a credit may need, for each answer by its name: the same whatever order the groups have."""
    found: dict[str, list[tuple[float, ...]]] = {"old_logp": [], "ref_logp": [], "value": []}
    for r in (r for g in some for r in g.rollouts):
        random = torch.Generator().manual_seed(1000 * seed + 100 * int(r.prompt_id[1:]) + r.sample)
        for name, rows in found.items():
            noise = torch.randn(len(r.completion), generator=random) * gap
            rows.append(tuple((noise if name == "value" else torch.tensor(r.logp) + noise).tolist()))
    return found


def told(credit: Credit, some: Sequence[Group], cols: Columns, price: float = 0.0, **estimator: Any) -> Credited:
    """What it is called with in the stage: the columns it needs, and ref_logp where a price is to be paid."""
    wanted = credit.needs | ({"ref_logp"} if price else set())
    return credit.assign(some, {name: cols[name] for name in wanted}, price, **estimator)


def advantages(credited: Credited) -> dict[str, tuple[float, ...]]:
    """Sample id -> the advantage of each completion token."""
    return {s.id: s.columns["advantage"][s.start :] for s in credited.samples}  # type: ignore[index]


@every
@pytest.mark.parametrize("price", [0.0, 0.2])
def test_every_answer_becomes_a_sample_with_the_columns_it_gives(credit: Credit, price: float) -> None:
    some = groups()
    samples = told(credit, some, columns(some), price).samples
    rollouts = [r for g in some for r in g.rollouts]
    assert [s.id for s in samples] == [f"{r.prompt_id}/{r.sample}" for r in rollouts]
    for sample, r in zip(samples, rollouts, strict=True):
        assert sample.tokens == r.prompt + r.completion
        assert sample.mask == (False,) * len(r.prompt) + (True,) * len(r.completion)
        assert set(sample.columns) == credit.gives
        for column in sample.columns.values():
            assert isinstance(column, tuple)
            assert len(column) == len(sample.tokens)
            assert not any(column[: len(r.prompt)])
            assert all(map(math.isfinite, column))


@every
def test_old_log_probs_go_through_as_they_are(credit: Credit) -> None:
    some = groups()
    cols = columns(some)
    for sample, old in zip(told(credit, some, cols).samples, cols["old_logp"], strict=True):
        assert sample.columns["old_logp"] == (0.0,) * 3 + old


@every
def test_the_order_of_groups_does_not_matter(credit: Credit) -> None:
    some = groups()
    there, back = (advantages(told(credit, order, columns(order), 0.1)) for order in (some, some[::-1]))
    assert set(there) == set(back)
    for name, row in there.items():
        assert back[name] == pytest.approx(row, abs=1e-9)


@pytest.mark.parametrize("credit", ALONE, ids=name)
def test_a_group_is_taught_the_same_whatever_else_is_in_the_round(credit: Credit) -> None:
    some = groups()
    whole = advantages(told(credit, some, columns(some), 0.1))
    for g in some:
        for name, row in advantages(told(credit, [g], columns([g]), 0.1)).items():
            assert whole[name] == pytest.approx(row, abs=1e-9)


@pytest.mark.parametrize("credit", COMPARING, ids=name)
def test_equal_scores_without_a_price_teach_nothing(credit: Credit) -> None:
    some = groups(scores=[0.7] * 12)
    assert all(a == pytest.approx(0.0, abs=1e-9) for row in advantages(told(credit, some, columns(some))).values() for a in row)


@priced
def test_a_better_answer_is_taught_more(credit: Credit) -> None:
    """One answer's score is raised, all else the same."""
    some = groups()
    cols = columns(some)
    before = advantages(told(credit, some, cols))["q1/2"]
    first = some[1].rollouts
    raised = replace(some[1], rollouts=(*first[:2], replace(first[2], score=Score(first[2].score.value + 1.0))))  # type: ignore[union-attr]
    after = advantages(told(credit, [some[0], raised, *some[2:]], cols))["q1/2"]
    assert sum(after) > sum(before) or not any(before)  # a correction may mask all its tokens


@priced
def test_an_answer_that_left_the_reference_pays_and_one_that_came_nearer_is_paid(credit: Credit) -> None:
    """Scores are equal; answer 2 of the second group is a nat a token more likely under the policy than under the reference."""
    some = groups(scores=[0.0] * 12)
    cols = columns(some, gap=0.0)
    cols["ref_logp"] = list(cols["old_logp"])
    for gap, sign in ((-1.0, -1), (1.0, 1)):
        cols["ref_logp"][5] = tuple(x + gap for x in cols["old_logp"][5])
        assert sign * sum(advantages(told(credit, some, cols, 0.2))["q1/2"]) > 0


@priced
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_price_by_any_estimator_is_paid_and_far_apart_is_finite(credit: Credit, estimator: str) -> None:
    some = groups()
    cols = columns(some)
    first = advantages(told(credit, some, cols, 0.2, estimator=estimator))
    assert first != advantages(told(credit, some, cols))
    assert (first == advantages(told(credit, some, cols, 0.2))) == (estimator == "k1")
    for gap in (-50.0, 50.0):
        cols["ref_logp"] = [tuple(x + gap for x in row) for row in cols["old_logp"]]
        found = advantages(told(credit, some, cols, 0.2, estimator=estimator))
        assert all(math.isfinite(a) for row in found.values() for a in row)


@every
@pytest.mark.parametrize("gap", [-50.0, 50.0])
def test_an_engine_that_is_far_off_gives_finite_numbers(credit: Credit, gap: float) -> None:
    some = groups()
    cols = columns(some)
    cols["old_logp"] = [tuple(x + gap for x in r.logp) for g in some for r in g.rollouts]
    assert all(math.isfinite(a) for row in advantages(told(credit, some, cols)).values() for a in row)


@every
def test_an_engine_that_agrees_needs_no_correction(credit: Credit) -> None:
    some = groups()
    cols = columns(some)
    cols["old_logp"] = [r.logp for g in some for r in g.rollouts]
    corrected, plain = (advantages(told(c, some, cols)) for c in (credit, credit.model_copy(update={"correction": None})))
    for name, row in plain.items():
        assert corrected[name] == pytest.approx(row, abs=1e-12)


@every
def test_it_reads_the_columns_it_declares_and_no_others(credit: Credit) -> None:
    read: set[str] = set()

    class Witness(dict):
        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

    some = groups()
    cols = {name: row for name, row in columns(some).items() if name in credit.needs}
    credit.assign(some, Witness(cols), 0.0)
    assert read == credit.needs


@every
def test_the_metric_is_the_mean_over_all_tokens(credit: Credit) -> None:
    some = groups()
    stats = told(credit, some, columns(some)).stats
    assert stats["advantage"][1] == sum(len(r.completion) for g in some for r in g.rollouts)
    assert ("importance_weight" in stats) == (getattr(credit, "correction", None) is not None)


@every
def test_it_does_not_change_its_inputs_and_knows_no_chance(credit: Credit) -> None:
    some = groups()
    cols = columns(some)
    before = {name: list(rows) for name, rows in cols.items()}
    assert told(credit, some, cols, 0.1) == told(credit, some, cols, 0.1)
    assert cols == before


@every
def test_an_answer_without_a_score_counts_as_0(credit: Credit) -> None:
    some, cols = groups(scores=[0.0, 1.0, 2.0] * 4), columns(groups())
    unscored = [replace(g, rollouts=(replace(g.rollouts[0], score=None), *g.rollouts[1:])) for g in some]
    assert told(credit, unscored, cols) == told(credit, some, cols)
