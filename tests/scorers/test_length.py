"""Length penalties by hand."""

import pytest
from pydantic import ValidationError

from xwin.scorers.length import Length, Linear, Overlong

from .groups import NoModels, group


def test_soft_overlong_punishment_by_hand() -> None:
    """Equation 13 with L_max 100 and L_cache 20: 0 up to 80, then (80 - L) / 20, -1 from 100 on."""
    shape = Overlong(longest=100, buffer=20)
    assert [shape.of(n) for n in (1, 80, 81, 90, 100, 101, 500)] == pytest.approx([0, 0, -0.05, -0.5, -1, -1, -1])


def test_a_linear_price_by_hand() -> None:
    assert [Linear(free=10, price=0.5).of(n) for n in (1, 10, 11, 14)] == [0, 0, -0.5, -2]


def test_it_counts_the_tokens_of_each_answer() -> None:
    scorer = Length.model_validate({"shape": {"kind": "linear", "price": 0.25}}).build(NoModels())
    (row,) = scorer.score([group(["a", "b"], lengths=[1, 4])])
    assert [s.value for s in row] == [-0.25, -1.0]


def test_a_buffer_longer_than_the_answer_is_refused() -> None:
    with pytest.raises(ValidationError, match="longer than the longest"):
        Overlong(longest=10, buffer=11)
