"""REINFORCE++: by hand, and against the equations of its paper in plain loops."""

import math

import pytest
import torch

from xwin.credit.round import Round, to_go
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score


def group(name: str, *answers: tuple[float, int]) -> Group:
    """Answers as (score, length)."""
    rollouts = tuple(Rollout(name, k, 0, (1, 2), tuple(range(10, 10 + n)), (-1.0,) * n, "stop", Score(score)) for k, (score, n) in enumerate(answers))
    return Group(Conversation(name, (Message("user", "x"),)), rollouts, ("",) * len(rollouts))


def trained(credit: Round, groups: list[Group], columns: dict[str, list[tuple[float, ...]]], price: float = 0.0) -> list[list[float]]:
    return [list(s.columns["advantage"])[2:] for s in credit.assign(groups, columns, price).samples]  # type: ignore[arg-type]


def test_one_answer_per_prompt_by_hand() -> None:
    """Scores 3 (one token) and 0 (two tokens): over three tokens mean 1, variance 2; so 2 / 1.414 and -1 / 1.414."""
    groups = [group("a", (3.0, 1)), group("b", (0.0, 2))]
    found = trained(Round(), groups, {"old_logp": [(-1.0,), (-1.0, -1.0)]})
    assert found == [pytest.approx([math.sqrt(2)]), pytest.approx([-math.sqrt(0.5)] * 2)]


def test_the_price_to_come_is_paid_by_each_token() -> None:
    assert to_go(torch.tensor([1.0, 2.0, 4.0])).tolist() == [7.0, 6.0, 4.0]


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_it_is_the_papers_equations_in_plain_loops(baseline: str) -> None:
    random = torch.Generator().manual_seed(3)
    groups = [group("a", (1.0, 3), (0.0, 5)), group("b", (0.0, 2), (0.5, 4)), group("c", (2.0, 1), (2.0, 6))]
    rows = [r for g in groups for r in g.rollouts]
    columns = {n: [tuple((-torch.rand(len(r.completion), generator=random)).tolist()) for r in rows] for n in ("old_logp", "ref_logp")}
    raw = []
    for g in groups:
        mean = sum(r.score.value for r in g.rollouts if r.score) / len(g.rollouts) if baseline == "mean" else 0.0
        for r in g.rollouts:
            k = rows.index(r)
            gaps = [o - f for o, f in zip(columns["old_logp"][k], columns["ref_logp"][k], strict=True)]
            raw.append([(r.score.value if r.score else 0.0) - mean - 0.2 * sum(gaps[t:]) for t in range(len(gaps))])
    flat = [x for row in raw for x in row]
    centre = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - centre) ** 2 for x in flat) / len(flat))
    found = trained(Round(baseline=baseline), groups, columns, 0.2)  # type: ignore[arg-type]
    for mine, row in zip(found, raw, strict=True):
        assert mine == pytest.approx([(x - centre) / deviation for x in row], rel=1e-6)


def test_equal_scores_without_a_price_teach_nothing() -> None:
    groups = [group("a", (1.0, 3)), group("b", (1.0, 2))]
    assert [x for row in trained(Round(), groups, {"old_logp": [(-1.0,) * 3, (-1.0,) * 2]}) for x in row] == [0.0] * 5


def test_stats_are_before_whitening_and_weights_after_it() -> None:
    """Scores 3 and 0; the learner finds the second answer's tokens 2 and 8 times as likely as the engine did; the cap is 2."""
    groups = [group("a", (3.0, 1)), group("b", (0.0, 2))]
    columns = {"old_logp": [(-1.0,), (-1.0 + math.log(2), -1.0 + math.log(8))]}
    credit = Round.model_validate({"correction": {"kind": "truncate", "cap": 2.0}})
    credited = credit.assign(groups, columns, 0.0)
    assert credited.stats["advantage"] == (3.0, 3)
    assert credited.stats["importance_weight"] == pytest.approx((5.0, 3))
    assert credited.samples[1].columns["advantage"] == pytest.approx((0, 0, -2 * math.sqrt(0.5), -2 * math.sqrt(0.5)))
    assert set(credited.samples[0].columns) == Round.gives
