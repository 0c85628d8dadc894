import math
from dataclasses import asdict

import pytest

from xwin.run.statistics import bootstrap_interval, clustered, mean_interval, paired, paired_means, prompts_needed, proportion, ratio_error


def test_wilson_interval_is_the_published_formula():
    # by hand: z = 1.959964, n = 10, p = 0.8: centre (p + z^2/2n) / (1 + z^2/n) = 0.716740,
    # half width z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2) = 0.226577
    found = proportion(8, 10)
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.716740 - 0.226577, abs=2e-6)
    assert found.high == pytest.approx(0.716740 + 0.226577, abs=2e-6)


def test_wilson_interval_of_none_passed_does_not_collapse():
    found = proportion(0, 10)  # upper end z^2 / (n + z^2) = 3.841459 / 13.841459
    assert found.low == pytest.approx(0, abs=1e-12)
    assert found.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


def test_nothing_tried_means_nothing_known():
    found = proportion(0, 0)
    assert math.isnan(found.value)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize("successes", [2.5, 11, -1])
def test_a_share_takes_whole_successes_up_to_n(successes):
    with pytest.raises(ValueError, match=r"whole number in 0\.\.10"):
        proportion(successes, 10)


def test_mean_interval_is_students_t():
    # 1..5: mean 3, standard error sqrt(2.5 / 5) = 0.707107, t(0.975, 4) = 2.776445 from the table
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.value == 3
    assert found.low == pytest.approx(3 - 2.776445 * 0.707107, abs=1e-5)
    assert found.high == pytest.approx(3 + 2.776445 * 0.707107, abs=1e-5)
    assert found.n == 5


def test_mean_interval_is_cut_at_what_a_mean_can_be():
    found = mean_interval([1, 1, 0.5], bounds=(0, 1))
    assert found.high == 1
    assert found.low > 0


def test_mean_interval_of_few_or_equal_values_has_no_warning():
    assert math.isnan(mean_interval([]).value)
    one = mean_interval([0.5])
    assert one.value == 0.5
    assert math.isnan(one.low)
    equal = mean_interval([0.5] * 4)
    assert (equal.low, equal.high) == (0.5, 0.5)


def test_values_that_are_all_the_same_are_not_sure_where_it_is_known_what_they_can_be():
    """By hand: of 10 equal values Wilson's upper end of 0 of 10 is z^2 / (10 + z^2) = 0.277533; so large a share may lie anywhere else."""
    none, every, half = (mean_interval([value] * 10, bounds=(0, 1)) for value in (0.0, 1.0, 0.5))
    assert (none.low, none.high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert (every.low, every.high) == (pytest.approx(1 - 0.277533, abs=1e-6), 1.0)
    assert (half.low, half.high) == (pytest.approx(0.5 - 0.277533 / 2, abs=1e-6), pytest.approx(0.5 + 0.277533 / 2, abs=1e-6))
    assert every == bootstrap_interval([1.0] * 10, seed=0, bounds=(0, 1))
    assert every.low == pytest.approx(clustered([[1.0, 1.0]] * 10).low) == pytest.approx(proportion(10, 10).low)
    assert clustered([[0.5], [1.0, 0.0]] * 5) == half
    grades = mean_interval([9.0] * 10, bounds=(1, 10))
    assert (grades.low, grades.high) == (pytest.approx(9 - 8 * 0.277533, abs=1e-5), pytest.approx(9 + 0.277533, abs=1e-5))
    assert paired([False] * 10, [True] * 10).low == pytest.approx(1 - 2 * 0.277533, abs=1e-6)
    both = paired_means([1.0] * 10, [1.0] * 10, bounds=(-1, 1))
    assert (both.low, both.high) == (pytest.approx(-0.277533, abs=1e-6), pytest.approx(0.277533, abs=1e-6))


def test_mcnemar_counts_only_the_prompts_that_differ():
    # 9 gained, 1 lost, 10 the same: p = 2 * (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
    first = [False] * 9 + [True] + [True] * 5 + [False] * 5
    second = [True] * 9 + [False] + [True] * 5 + [False] * 5
    found = paired(first, second)
    assert found.p == pytest.approx(22 / 1024)
    assert found.n == 20
    assert found.difference == pytest.approx(0.4)
    # differences: sum 8, sum of squares 10, variance (10 - 20 * 0.16) / 19 = 0.357895, standard error 0.133771, t(0.975, 19) = 2.093024
    assert found.low == pytest.approx(0.4 - 2.093024 * 0.133771, abs=1e-5)
    assert found.high == pytest.approx(0.4 + 2.093024 * 0.133771, abs=1e-5)


def test_the_paired_test_is_the_same_from_both_sides():
    first, second = [True, False, False, True, False], [True, True, True, False, True]
    there, back = paired(first, second), paired(second, first)
    assert there.p == back.p
    assert there.difference == -back.difference


def test_models_that_never_differ_have_p_1():
    assert paired([True, False], [True, False]).p == 1
    assert paired([True, False], [True, False]).difference == 0
    assert paired([], []).p == 1


def test_a_paired_test_needs_the_same_prompts():
    with pytest.raises(ValueError, match="shorter"):
        paired([True, False], [True])


def test_a_bootstrap_interval_of_many_values_is_that_of_the_normal_limit():
    # by hand: 0 and 1 in turn, 400 of them: standard error 0.5 / 20 = 0.025, 1.96 of it on each side
    found = bootstrap_interval([0.0, 1.0] * 200, seed=0)
    assert (found.value, found.n) == (0.5, 400)
    assert found.low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert found.high == pytest.approx(0.5 + 0.049, abs=0.006)
    assert found == bootstrap_interval([0.0, 1.0] * 200, seed=0)


def test_a_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([0.5] * 9, seed=0).low == 0.5
    assert math.isnan(bootstrap_interval([0.5], seed=0).low)


def test_paired_means_is_students_paired_t():
    # gains 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom, whose distribution is 1/2 + t / (2 sqrt(2 + t^2)): p = 0.074180
    found = paired_means([5, 1, 0], [6, 3, 3])
    assert (found.difference, found.n) == (2, 3)
    assert found.p == pytest.approx(1 - 3.4641016 / math.sqrt(14), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)  # t(0.975, 2) from the table


def test_means_that_never_differ_have_p_1():
    assert paired_means([1, 2], [1, 2]).p == 1
    assert paired_means([1], [2]).p == 1


def test_the_same_gain_everywhere_is_as_sure_as_there_are_prompts():
    """The sign test: 2 / 2^n. Two prompts prove nothing, six do."""
    assert paired_means([1, 2], [2, 3]).p == 0.5
    assert paired_means([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p == 0.25  # the same but for rounding
    assert paired_means([0] * 6, [1] * 6).p == 1 / 32 < 0.05 < paired_means([0] * 5, [1] * 5).p
    assert prompts_needed([1, 2], [2, 3]) == 6


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_prompts_needed_are_those_of_the_published_tables(effect, needed):
    # G*Power 3.1, difference between two dependent means, two-sided 5 %, power 0.8
    apart = math.sqrt(0.5)  # two values so far from their mean have standard deviation 1
    assert prompts_needed([0, 0], [effect - apart, effect + apart]) == needed


def test_no_number_of_prompts_finds_no_difference():
    assert prompts_needed([1, 2], [2, 1]) is None
    assert prompts_needed([1], [2]) is None


def test_values_of_a_group_are_no_independent_draws():
    """Groups (1, 1, 0), (0), (1, 0): mean 3/6. Deviations of sums from mean * count: 1/2, -1/2, 0; sd 1/2; error sqrt 3 / 12; t(2) = 4.302653."""
    found = clustered([(1, 1, 0), (0,), (1, 0)])
    half = 4.302653 * 0.5 * 3**0.5 / 6
    assert (found.value, found.n) == (0.5, 3)
    assert (found.low, found.high) == (0.0, 1.0)  # half is 0.62
    assert ratio_error([(1, 1, 0), (0,), (1, 0)]) == pytest.approx(half / 4.302653)
    many = clustered([(1, 1, 0), (0,), (1, 0)] * 30)
    assert many.high - 0.5 == pytest.approx(1.986979 * 0.5 * (90 / 89 * 2 / 3) ** 0.5 / (2 * 90**0.5), rel=1e-5)  # sd over 90 groups, t(89)


def test_groups_of_one_are_a_mean_and_groups_that_agree_are_a_share():
    values = [0.2, 0.8, 0.4, 0.6]
    assert asdict(clustered([(v,) for v in values])) == pytest.approx(asdict(mean_interval(values)))
    assert clustered([(1, 1), (0, 0), (1, 1)]) == proportion(2, 3)
    assert clustered([(1,), (1, 1)]) == proportion(2, 2)
    assert clustered([]).n == 0
    assert math.isnan(clustered([(1, 0)]).low)


def test_a_tiny_difference_needs_many_prompts_and_not_for_ever():
    """Far out t is normal: ((1.959964 + 0.841621) / effect)^2, and 1.92 more (half the square of 1.96)."""
    apart = math.sqrt(0.5)
    for effect in (1e-3, 1e-5, 1e-7):
        needed = prompts_needed([0, 0], [effect - apart, effect + apart])
        assert needed == pytest.approx((2.801585 / effect) ** 2 + 1.92, rel=1e-5)
