"""Sums of scorers: the value is the weighted sum, every part stays visible, a failure stays a failure."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from xwin.data.rollout import Group, Score
from xwin.scorers._outcome import ScorerError, failed, has_failed
from xwin.scorers.sum import Sum, SumScorer

from .groups import NoModels, group


@dataclass(frozen=True)
class Given:
    """A scorer that says what it is told."""

    scores: list[list[Score]]

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        return self.scores


def test_a_sum_by_hand() -> None:
    """2 * 0.5 - 1 * 3 = -2, and 2 * 1 - 1 * 0 = 2."""
    first, second = Given([[Score(0.5, {"x": 0.25}, "half"), Score(1.0)]]), Given([[Score(3.0), Score(0.0, note="short")]])
    (row,) = SumScorer({"right": (2.0, first), "long": (-1.0, second)}).score([group(["a", "b"])])
    assert row == [
        Score(-2.0, {"right": 0.5, "long": 3.0, "right.x": 0.25}, "right: half"),
        Score(2.0, {"right": 1.0, "long": 0.0}, "long: short"),
    ]


def test_where_a_part_failed_the_sum_has() -> None:
    parts = {"a": (1.0, Given([[failed("broken"), Score(1.0)]])), "b": (1.0, Given([[Score(1.0), Score(1.0)]]))}
    (row,) = SumScorer(parts).score([group(["a", "b"])])
    assert [has_failed(s) for s in row] == [True, False]
    assert row[0].note == "a: broken"


def test_the_wrong_number_of_scores_is_named() -> None:
    with pytest.raises(ScorerError, match="scores for 1 answers, not 2"):
        SumScorer({"a": (1.0, Given([[Score(1.0)]]))}).score([group(["a", "b"])])


def test_it_is_built_from_a_recipe() -> None:
    """Right and 3 tokens long: 1 + 0.5 * (4 - 2 - 3) / 2 = 0.75; wrong and 1 token long: 0."""
    settings = {
        "parts": {
            "right": {"scorer": "answer"},
            "length": {"scorer": {"kind": "length", "shape": {"kind": "overlong", "longest": 4, "buffer": 2}}, "weight": 0.5},
        }
    }
    spec = Sum.model_validate(settings)
    (row,) = spec.build(NoModels()).score([group(["#### 4", "#### 5"], lengths=[3, 1], answer="4")])
    assert [s.value for s in row] == [0.75, 0.0]
    assert [dict(s.parts) for s in row] == [{"right": 1.0, "length": -0.5}, {"right": 0.0, "length": 0.0}]
    assert Sum.model_validate(spec.settings()) == spec


def test_a_part_may_not_pass_for_a_failure() -> None:
    with pytest.raises(ValidationError, match="may not be named 'failed'"):
        Sum.model_validate({"parts": {"failed": {"scorer": "answer"}}})


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError):
        Sum.model_validate({"parts": {}})
