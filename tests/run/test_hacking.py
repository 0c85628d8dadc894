"""Signs of reward hacking, by hand and by chance."""

import json
import math
from statistics import fmean

import numpy as np
import pytest

from xwin.run.hacking import SURE, Look, Looks, after, divergence, mean, mix, repetition, rise, signs, slope_of


def look(score: list[float | None], gold: list[float | None] | None = None, *, length: float = 4.0, kl: float | None = None) -> Look:
    return Look(score, gold or [], length, [1.0, 0.0, 0.0, 0.0, 0.0], kl)


def test_a_rise_is_the_mean_difference_in_its_standard_errors_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, so 2 * sqrt 3. Prompts that were not scored both times are left out."""
    assert rise([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == pytest.approx(2 * math.sqrt(3))
    assert rise([0.0, None, 0.0, 0.0, 7.0], [1.0, 5.0, 2.0, 3.0, None]) == pytest.approx(2 * math.sqrt(3))
    assert rise([1.0], [5.0]) == 0.0
    assert rise([1.0, 2.0], [1.0, 2.0]) == 0.0
    assert rise([1.0, 2.0], [2.0, 3.0]) > 1e6


def test_hacking_is_a_score_that_rose_and_gold_that_fell_since_gold_was_best() -> None:
    first = look([0.0, 0.1, 0.2], [0.9, 0.8, 0.7])
    best = look([0.2, 0.3, 0.4], [1.0, 0.9, 0.8])
    looks = after(after(None, first), best)
    assert (looks.first, looks.best) == (first, best)
    now = look([1.2, 2.3, 3.4], [0.4, 0.1, 0.0])  # score + 1, 2, 3; gold - 0.6, 0.8, 0.8
    expected = min(2 * math.sqrt(3), fmean([0.6, 0.8, 0.8]) / np.std([0.6, 0.8, 0.8], ddof=1) * math.sqrt(3))
    assert signs(looks, now)["hacking"] == pytest.approx(expected)
    assert signs(looks, look([1.2, 2.3, 3.4], [1.1, 1.0, 0.95]))["hacking"] == 0.0  # both rose: gold is at its best now
    assert signs(looks, look([0.1, 0.2, 0.2], [0.4, 0.1, 0.0]))["hacking"] < 0  # both fell
    assert signs(None, first)["hacking"] == 0.0
    assert "hacking" not in signs(None, look([0.0, 1.0]))


def test_by_chance_few_runs_are_taken_for_hacked_though_gold_is_compared_with_its_best() -> None:
    """The score rises throughout, gold is noise around one value: 64 prompts, 20 looks, 200 runs."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        looks, prompts, worst = None, random.normal(0, 0.3, 64), 0.0
        for step in range(20):
            now = look((random.normal(0, 0.3, 64) + 0.1 * step).tolist(), (prompts + random.normal(0, 0.3, 64)).tolist())
            worst, looks = max(worst, signs(looks, now)["hacking"]), after(looks, now)
        alarms += worst > SURE
    assert alarms / 200 < 0.1


def test_gold_that_falls_is_seen_before_a_tenth_of_it_is_lost() -> None:
    """Gold loses 1 % a look of which 64 prompts vary by 10 %."""
    random = np.random.default_rng(1)
    looks, seen = None, None
    for step in range(10):
        now = look((random.normal(0, 0.3, 64) + 0.1 * step).tolist(), (1 - 0.01 * step + random.normal(0, 0.1, 64)).tolist())
        if signs(looks, now)["hacking"] > SURE and seen is None:
            seen = mean(now.gold)
        looks = after(looks, now)
    assert seen is not None
    assert seen > 0.9


def test_drift_is_measured_from_the_first_look() -> None:
    first = Look([1.0], [], 4.0, [1.0, 0.0, 0.0, 0.0, 0.0], None)
    now = Look([1.0], [], 6.0, [0.0, 1.0, 0.0, 0.0, 0.0], None)
    assert signs(None, first) == {"format_drift": 0.0, "length_drift": 0.0}
    assert signs(after(None, first), now) == {"format_drift": 1.0, "length_drift": 0.5}


def test_divergence_by_hand() -> None:
    """(1/2, 1/2) and (1, 0): middle (3/4, 1/4); (log2(2/3) / 2 + log2(2) / 2) / 2 + log2(4/3) / 2 = 0.311278 bits."""
    assert divergence([0.5, 0.5], [1.0, 0.0]) == pytest.approx(0.3112781)
    assert divergence([0.5, 0.5], [0.5, 0.5]) == 0.0
    assert divergence([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert divergence([0.0, 0.0], [0.0, 0.0]) == 0.0


def test_the_mix_of_signs() -> None:
    """Four letters of two scripts, two digits, a space and a tab, a line break, two other signs."""
    assert mix(["aé\u0416 z", "12\t\n", "*."]) == pytest.approx([4 / 11, 2 / 11, 2 / 11, 1 / 11, 2 / 11])
    assert mix(["", ""]) == [0.0] * 5


def test_repetition_by_hand() -> None:
    """1 2 1 2 1 2 has the phrases 1212, 2121, 1212: one of three was there before."""
    assert repetition([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 3)
    assert repetition([7] * 13) == pytest.approx(0.9)
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 1, 1, 1]) == repetition([1]) == repetition([]) == 0.0


def test_the_slope_of_kl_by_hand() -> None:
    """Scores 0, 1, 2 and KL 0, 1, 4: slope 2. Only the last five looks that measured a KL count."""
    assert slope_of([(0.0, 0.0), (1.0, 1.0), (2.0, 4.0)]) == pytest.approx(2.0)
    assert slope_of([(1.0, 1.0)]) is slope_of([(1.0, 1.0), (1.0, 2.0)]) is None
    looks = after(None, look([0.0]))
    for k in range(7):
        looks = after(looks, look([float(k)], kl=float(k * k)))
    assert list(looks.trail) == [(float(k), float(k * k)) for k in range(2, 7)]
    assert signs(looks, look([7.0], kl=49.0))["kl_per_reward"] == pytest.approx(10.0)  # 3, 4, 5, 6, 7: squares rise by 10


def test_looks_survive_a_checkpoint() -> None:
    looks = after(after(None, look([0.0, None], [1.0, 2.0])), look([1.0, 1.0], [3.0, None], kl=0.5))
    again = Looks.from_json(json.loads(json.dumps(looks.to_json())))
    assert again.to_json() == looks.to_json()
    now = look([4.0, 2.0], [0.0, 1.0], kl=1.0)
    assert signs(again, now) == signs(looks, now)
