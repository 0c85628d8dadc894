"""What scores are worth, by hand: the part of length, and the reasons why there is no temperature."""

import numpy as np
import pytest

from xwin.errors import TrainingStopped
from xwin.stages._reward_card import Heard, calibrate, length_bias, measure, why_not


def heard(scores: list[list[float]], lengths: list[float], labels: list[float], pairs: list[tuple[int, int]]) -> Heard:
    return Heard(np.array(scores), np.array(lengths), np.array(labels), np.array(pairs, np.int64).reshape(-1, 2))


def test_the_part_of_length_by_hand() -> None:
    """Pairs (better length, worse length, gap): (10, 10, +1) matched; (20, 18, +2) matched, longer; (5, 10, -1) shorter and wrong; (4, 8, +3)
    shorter; (9, 3, 0) longer, a tie. Accuracy (1 + 1 + 0 + 1 + 0.5) / 5, longer wins (0.5 + 1 + 0 + 0 + 1) / 5."""
    rows = [(10, 10, 1.0), (20, 18, 2.0), (5, 10, -1.0), (4, 8, 3.0), (9, 3, 0.0)]
    scores = [[x] for _, _, gap in rows for x in (gap, 0.0)]
    lengths = [float(n) for better, worse, _ in rows for n in (better, worse)]
    found = length_bias(heard(scores, lengths, [1.0, 0.0] * 5, [(2 * k, 2 * k + 1) for k in range(5)]))
    assert found is not None
    assert (found.pairs, found.matched, found.shorter) == (5, 2, 2)
    assert (found.accuracy, found.longer_wins) == (pytest.approx(0.7), pytest.approx(0.5))
    assert (found.matched_accuracy, found.shorter_accuracy) == (1.0, 0.5)
    assert found.correlation == pytest.approx(np.corrcoef([x for (x,) in scores], lengths)[0, 1])


def test_what_is_not_there_is_none() -> None:
    found = length_bias(heard([[1.0], [0.0]], [5.0, 5.0], [1.0, 0.0], [(0, 1)]))
    assert found is not None
    assert (found.shorter, found.shorter_accuracy, found.correlation) == (0, None, None)
    assert length_bias(heard([[1.0], [0.0]], [5.0, 5.0], [1.0, 1.0], [])) is None


def test_a_model_that_rewards_length_is_shown_up() -> None:
    """Its accuracy is no better than that of length, and on pairs whose better answer is shorter it is 0."""
    random = np.random.Generator(np.random.Philox(1))
    lengths = random.integers(5, 50, 200).astype(float)
    found = length_bias(heard([[x / 10] for x in lengths], lengths.tolist(), [1.0, 0.0] * 100, [(2 * k, 2 * k + 1) for k in range(100)]))
    assert found is not None
    assert found.accuracy == found.longer_wins
    assert found.shorter_accuracy == 0.0
    assert found.correlation == pytest.approx(1.0)


def test_zero_and_unit_by_hand() -> None:
    """Two heads: answers (1, 3) and (5, 7), means 2 and 6: mean 4, spread 2, the heads 1 below and above. Labels fix the zero, so no offsets."""
    both = heard([[1.0, 3.0], [5.0, 7.0]], [1, 1], [1, 0], [(1, 0)])
    assert measure(both, labelled=False).to_json() == {"mean": 4.0, "std": 2.0, "offsets": [-1.0, 1.0]}
    assert measure(both, labelled=True).to_json() == {"mean": 4.0, "std": 2.0}


def test_equal_scores_have_no_unit() -> None:
    with pytest.raises(TrainingStopped, match="gives all of 2 answers the same score, 3"):
        measure(heard([[3.0], [3.0]], [1, 2], [1, 0], [(0, 1)]), labelled=False)


def test_why_there_is_no_temperature() -> None:
    few = heard([[1.0], [0.0]] * 31, [1.0] * 62, [1.0, 0.0] * 31, [(2 * k, 2 * k + 1) for k in range(31)])
    assert why_not(few, labelled=False) == "not calibrated: 31 held-out pairs are too few, it takes 32"
    assert why_not(few, labelled=True) == ""
    assert why_not(heard([[1.0]] * 40, [1.0] * 40, [0.0] * 40, []), labelled=True) == "not calibrated: all 40 held-out answers have one label"


def test_a_model_that_is_too_sure_gets_a_temperature_above_one() -> None:
    """Gaps of 4 mean 98 % to it, and 7 in 10 are right: an error of 0.28 before, of 0.01 after, for the target is a little less than certain."""
    gaps = [4.0] * 70 + [-4.0] * 30
    both = heard([[x] for gap in gaps for x in (gap, 0.0)], [1.0] * 200, [1.0, 0.0] * 100, [(2 * k, 2 * k + 1) for k in range(100)])
    found = calibrate(both, labelled=False)
    assert found.temperature > 3
    assert found.error == pytest.approx(1 / (1 + np.exp(-4.0)) - 0.7)
    assert found.calibrated_error < 0.01
    assert [(b.n, b.right) for b in found.before] == [(100, pytest.approx(0.7))]
