"""Credit against siblings: by hand, and its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xwin.credit.group import SMALLEST_SPREAD, GroupRelative, centred, spread
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score

SCORES = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def group(name: str, scores: list[float], lengths: list[int] | None = None, engine: float = -1.0) -> Group:
    sizes = lengths or [2] * len(scores)
    rollouts = tuple(
        Rollout(name, k, 0, (1, 2, 3), tuple(range(10, 10 + n)), (engine,) * n, "stop", Score(s))
        for k, (s, n) in enumerate(zip(scores, sizes, strict=True))
    )
    return Group(Conversation(name, (Message("user", "x"),)), rollouts, ("",) * len(rollouts))


def old(*groups: Group, value: float = -1.0) -> dict[str, list[tuple[float, ...]]]:
    return {"old_logp": [(value,) * len(r.completion) for g in groups for r in g.rollouts]}


def answers(credit: GroupRelative, groups: list[Group], columns: dict[str, list[tuple[float, ...]]] | None = None, price: float = 0.0) -> list[float]:
    """One advantage per answer; all its tokens have the same."""
    found = credit.assign(groups, columns or old(*groups), price).samples
    for sample in found:
        row = sample.columns["advantage"]
        assert isinstance(row, tuple)
        assert row[:3] == (0.0,) * 3
        assert len(set(row[3:])) == 1
    return [s.columns["advantage"][-1] for s in found]  # type: ignore[index]


def test_grpo_by_hand() -> None:
    """Scores 1, 0, 0, 1: mean 0.5, sample std 0.57735. Scores 3, 1: mean 2, std 1.41421."""
    found = answers(GroupRelative(), [group("a", [1, 0, 0, 1]), group("b", [3, 1])])
    a, b = 0.5 / (0.5773503 + SMALLEST_SPREAD), 1 / (1.4142136 + SMALLEST_SPREAD)
    assert found == pytest.approx([a, -a, -a, a, b, -b], rel=1e-6)


def test_dr_grpo_and_rloo_by_hand() -> None:
    """Scores 4, 1, 1: less the mean 2, -1, -1; less the mean of the others 3, -1.5, -1.5."""
    groups = [group("a", [4, 1, 1])]
    assert answers(GroupRelative(scale="none"), groups) == [2, -1, -1]
    assert answers(GroupRelative(baseline="leave_one_out", scale="none"), groups) == [3, -1.5, -1.5]


@settings(deadline=None)
@given(SCORES)
def test_leave_one_out_is_what_its_name_says(scores: list[float]) -> None:
    found = answers(GroupRelative(baseline="leave_one_out", scale="none"), [group("a", scores)])
    slow = [s - sum(o for j, o in enumerate(scores) if j != i) / (len(scores) - 1) for i, s in enumerate(scores)]
    assert found == pytest.approx(slow, abs=1e-9)


@settings(deadline=None)
@given(SCORES, st.floats(-100, 100))
def test_advantages_add_to_zero_and_do_not_know_the_level_of_the_scores(scores: list[float], level: float) -> None:
    for credit in (GroupRelative(), GroupRelative(scale="none"), GroupRelative(baseline="leave_one_out", scale="none")):
        found = answers(credit, [group("a", scores)])
        assert sum(found) == pytest.approx(0.0, abs=1e-6)
        assert answers(credit, [group("a", [s + level for s in scores])]) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("credit", [GroupRelative(), GroupRelative(scale="none"), GroupRelative(baseline="leave_one_out")], ids=str)
def test_equal_scores_and_an_answer_alone_teach_nothing(credit: GroupRelative) -> None:
    assert answers(credit, [group("a", [0.1, 0.1, 0.1]), group("b", [7.0])]) == pytest.approx([0.0] * 4, abs=1e-9)


def test_scores_that_are_far_from_zero_keep_their_spread() -> None:
    """A variance as the mean of squares less the square of the mean would lose it all: (1e8)^2 has no digit left for 1."""
    values = torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64)
    assert spread(values).item() == pytest.approx(1.0)
    assert answers(GroupRelative(), [group("a", values.tolist())]) == pytest.approx([-1, 0, 1], abs=1e-3)
    assert centred(torch.tensor([5.0]), "leave_one_out").tolist() == [0.0]


def test_an_answer_pays_for_its_kl_against_its_siblings() -> None:
    """Price 0.1. Log-ratios to the reference add to 2 and -1: paid 0.2 and -0.1, mean 0.05, so -0.15 and +0.15; by leave-one-out -0.3 and 0.3."""
    groups = [group("a", [1, 1], [2, 1])]
    columns = {"old_logp": [(-1.0, -1.0), (-1.0,)], "ref_logp": [(-2.5, -1.5), (0.0,)]}
    assert answers(GroupRelative(scale="none"), groups, columns, 0.1) == pytest.approx([-0.15, 0.15])
    assert answers(GroupRelative(baseline="leave_one_out", scale="none"), groups, columns, 0.1) == pytest.approx([-0.3, 0.3])
    assert answers(GroupRelative(scale="none"), groups, columns, 0.0) == [0.0, 0.0]


def test_equal_scores_are_not_taught_the_noise_in_their_kl() -> None:
    """The price is not divided by a spread of 0: it stays what it costs."""
    groups = [group("a", [1, 1], [2, 1])]
    columns = {"old_logp": [(-1.0, -1.0), (-1.0,)], "ref_logp": [(-1.01, -1.0), (-1.0,)]}
    assert max(map(abs, answers(GroupRelative(), groups, columns, 0.1))) == pytest.approx(0.0005)


def test_stats_and_columns() -> None:
    groups = [group("a", [4, 1, 1], [1, 2, 3])]
    credited = GroupRelative(scale="none").assign(groups, old(*groups), 0.0)
    assert credited.stats == {"advantage": (2 * 1 - 1 * 2 - 1 * 3, 6)}
    assert all(set(s.columns) == GroupRelative.gives for s in credited.samples)
    assert [s.id for s in credited.samples] == ["a/0", "a/1", "a/2"]


def test_truncated_weights_by_hand() -> None:
    """The learner finds the tokens e^0.5, e^1 and e^-1 times as likely as the engine did; the cap is 2; the advantage 2."""
    rows = (Rollout("a", 0, 0, (1, 2, 3), (7, 8, 9), (-1.0, -1.0, -1.0), "stop", Score(2.0)), group("a", [0.0]).rollouts[0])
    groups = [Group(Conversation("a", (Message("user", "x"),)), rows, ("", ""))]
    columns = {"old_logp": [(-0.5, 0.0, -2.0), (-1.0, -1.0)]}
    credit = GroupRelative.model_validate({"scale": "none", "correction": {"kind": "truncate", "cap": 2.0}})
    credited = credit.assign(groups, columns, 0.0)
    assert credited.samples[0].columns["advantage"] == pytest.approx((0, 0, 0, 1.6487213, 2.0, 0.3678794))
    assert credited.samples[1].columns["advantage"] == (0, 0, 0, -1, -1)
    total, count = credited.stats["importance_weight"]
    assert (total, count) == pytest.approx((1.6487213 + 2.0 + 0.3678794 + 2, 5))
    whole = GroupRelative.model_validate({"scale": "none", "correction": {"kind": "truncate", "over": "answer"}}).assign(groups, columns, 0.0)
    assert whole.samples[0].columns["advantage"] == pytest.approx((0, 0, 0, 1.6487213, 1.6487213, 1.6487213))  # e^(0.5 + 1 - 1)


def test_masked_weights_by_hand() -> None:
    """Weights 1.65, 2.72 and 0.37; between 0.5 and 2 lies only the first."""
    rows = (Rollout("a", 0, 0, (1, 2, 3), (7, 8, 9), (-1.0, -1.0, -1.0), "stop", Score(2.0)), group("a", [0.0]).rollouts[0])
    groups = [Group(Conversation("a", (Message("user", "x"),)), rows, ("", ""))]
    credit = GroupRelative.model_validate({"scale": "none", "correction": {"kind": "mask", "high": 2.0}})
    credited = credit.assign(groups, {"old_logp": [(-0.5, 0.0, -2.0), (-1.0, -1.0)]}, 0.0)
    assert credited.samples[0].columns["advantage"] == pytest.approx((0, 0, 0, 1.6487213, 0.0, 0.0))
    assert credited.samples[0].mask == (False,) * 3 + (True,) * 3
