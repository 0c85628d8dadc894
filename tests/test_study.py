"""The table of a study: what is sure of a mean over seeds and prompts, by hand and by a second way; what may be said of it."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks.crossed import crossed, holm
from benchmarks.study import Worth, lines_of, plots, summary, table, worth_of
from benchmarks.study_runs import Answer, Cost, Method, Passed, Study
from xwin.errors import UserError


def test_the_interval_over_seeds_and_prompts_by_hand() -> None:
    """Two seeds, three prompts: 1 2 3 and 3 4 8. Mean 3.5; seeds 2 and 5, prompts 2, 3, 5.5.
    MS seeds 3 * 4.5 = 13.5; MS prompts 2 * 3.25 = 6.5; rest .5 .5 -1 and -.5 -.5 1: 3 / 2 = 1.5. V = (13.5 + 6.5 - 1.5) / 6 = 37 / 12.
    Degrees of freedom (37 / 12)^2 / ((13.5 / 6)^2 / 1 + (6.5 / 6)^2 / 2 + (1.5 / 6)^2 / 2) = 9.506944 / 5.680556 = 1.673594."""
    found = crossed([[1, 2, 3], [3, 4, 8]])
    assert (found.mean, found.seeds, found.prompts) == (3.5, 2, 3)
    from scipy import stats

    assert found.high - 3.5 == pytest.approx(stats.t.ppf(0.975, 1.673594) * math.sqrt(37 / 12), rel=1e-5)
    assert found.p == pytest.approx(2 * stats.t.sf(3.5 / math.sqrt(37 / 12), 1.673594), rel=1e-5)


def test_one_seed_is_students_t_over_prompts() -> None:
    """1..5: mean 3, standard error .707107, t(4) = 2.776445; t = 4.242641, p = .0132359 (Student's t with 4 degrees of freedom)."""
    found = crossed([[1, 2, 3, 4, 5]])
    assert (found.low, found.high) == pytest.approx((3 - 2.776445 * 0.707107, 3 + 2.776445 * 0.707107), abs=1e-5)
    assert found.p == pytest.approx(0.013236, abs=1e-5)


def test_a_mean_without_spread_is_sure_and_a_single_number_is_not() -> None:
    assert (crossed([[2.0, 2.0], [2.0, 2.0]]).low, crossed([[2.0, 2.0], [2.0, 2.0]]).p) == (2.0, 0.0)
    assert crossed([[0.0, 0.0]]).p == 1.0
    assert math.isnan(crossed([[3.0]]).low)


@pytest.mark.parametrize(("of_seeds", "of_prompts"), list(product((0.0, 0.5), (0.0, 1.0))))
def test_the_interval_holds_the_truth_as_often_as_it_says(of_seeds: float, of_prompts: float) -> None:
    """1,000 studies of 3 seeds and 40 prompts drawn with a known mean: 95 % of the intervals hold it, and no method for one source of chance alone
    does so for both. Within three standard errors of .95, or above: where a source is absent the interval is wider than it need be."""
    draw = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        values = of_seeds * draw.normal(size=(3, 1)) + of_prompts * draw.normal(size=(1, 40)) + draw.normal(size=(3, 40))
        found = crossed(values.tolist())
        held += found.low <= 0 <= found.high
    assert held / 1000 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_p_values_are_corrected_for_their_number() -> None:
    """Holm: the smallest times 3, the next times 2 but not less than the one before, the largest times 1 the same."""
    assert holm([0.02, 0.01, 0.5]) == pytest.approx([0.04, 0.03, 0.5])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def answers(golds: list[float], kl: float | None, length: float = 10.0) -> list[Answer]:
    return [Answer(gold, length, gold / 2, kl) for gold in golds]


SFT = Method("sft", 1, {0: answers([0.0, 0.2, 0.4], 0.0), 1: answers([0.1, 0.1, 0.4], 0.0)})
BEST = Method("best of 4", 4, {0: answers([0.5, 0.6, 1.0], None), 1: answers([0.6, 0.6, 0.9], None)}, {0: Cost(300, 800, 60), 1: Cost(500, 800, 60)})
PPO = Method(
    "ppo",
    1,
    {0: answers([1.0, 1.2, 1.5], 3.0, 20), 1: answers([1.1, 1.3, 1.2], 5.0, 20)},
    {0: Cost(1000, 3000, 300), 1: Cost(1000, 3000, 420)},
    {0: [Passed(0.0, 0.0, 0.0), Passed(2.0, 2000, 0.6)], 1: [Passed(0.0, 0.0, 0.0), Passed(4.0, 2200, 0.8)]},
    {0: ["hacking"], 1: ["hacking", "kl"]},
)
STUDY = Study("sft", ["a", "b", "c"], ["", "", ""], [SFT, BEST, PPO], {0: 0.61, 1: 0.6})
CELL = {"value": 0.64, "low": 0.6, "high": 0.68}
GOOD = Worth(CELL, {"value": 0.62, "low": 0.58, "high": 0.66})


def test_a_row_says_what_a_method_gave_and_what_it_cost() -> None:
    """By hand from the numbers above."""
    lines = {line.name: line for line in lines_of(STUDY, GOOD)}
    ppo, best = lines["ppo"], lines["best of 4"]
    assert ppo.against_reference is not None
    assert ppo.against_reference.mean == pytest.approx((3.7 + 3.6) / 6 - 1.2 / 6)
    assert ppo.against_best is None  # it is the best
    assert best.against_best is not None
    assert best.against_best.mean == pytest.approx((2.1 + 2.1) / 6 - (3.7 + 3.6) / 6)
    assert (ppo.kl, ppo.length, ppo.proxy) == (4.0, 20.0, pytest.approx(7.3 / 12))
    assert (best.kl, best.chooses) == (pytest.approx(math.log(4) - 3 / 4), True)
    assert (ppo.cost, best.cost) == (Cost(1000, 3000, 360), Cost(400, 800, 60))
    assert ppo.alarms == ("hacking", "kl")
    assert lines["sft"].against_reference is None


def test_a_judge_below_60_percent_ranks_nothing() -> None:
    weak = replace(GOOD, accuracy=CELL | {"value": 0.59})
    assert all(line.against_best is None for line in lines_of(STUDY, weak))
    text = table(STUDY, lines_of(STUDY, weak), weak)
    assert text.startswith("The gold judge ranks 59.0% [60.0%, 68.0%] of held-out pairs right; preferring the longer answer 62.0% [58.0%, 66.0%].\n")
    assert "no ranking is claimed" in text
    assert "less the best" not in text
    assert "no ranking" not in table(STUDY, lines_of(STUDY, GOOD), GOOD)


def test_the_table_reads_as_markdown() -> None:
    lines = table(STUDY, lines_of(STUDY, GOOD), GOOD).splitlines()
    assert lines.pop(1) == "The reward model that the methods learn from, by seed: 61.0, 60.0 %."
    assert lines[2].split(" | ")[:4] == ["| method", "seeds", "gold", "less sft"]
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in lines[4:]}
    assert "at most 0.64" in cells["best of 4"]
    assert cells["ppo"][-1] == "hacking, kl"
    assert len({row.count("|") for row in lines[2:]}) == 1


def test_right_and_wrong_is_shown_in_percent_and_by_family() -> None:
    one = Method("sft", 1, {0: answers([0.0, 1.0, 1.0, 0.0], 0.0)})
    other = Method("grpo", 1, {0: answers([1.0, 1.0, 1.0, 0.0], 1.0)})
    study = Study("sft", list("abcd"), ["sums", "sums", "logic", "logic"], [one, other], {})
    text = table(study, lines_of(study, None), None)
    assert study.verified
    assert text.startswith("Gold is right or wrong by code.\n")
    assert "accuracy, %" in text
    assert "+25.0 [" in text
    assert "| method | sums | logic |" in text
    assert "| grpo | 100 [100, 100] | 50 [" in text


def test_the_plots_are_pictures_of_their_own() -> None:
    """Best of n is on a line from sft; the way of ppo is the mean of its seeds; no variable of the report's page is left."""
    found = plots(STUDY, lines_of(STUDY, GOOD))
    assert list(found) == ["kl.svg", "compute.svg"]
    for svg in found.values():
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg
        assert "best of 4" in svg
        assert "ppo" in svg


def test_everything_is_json(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"recipe": "x", "seed": 1}')
    found = summary(lines_of(STUDY, GOOD), GOOD, [tmp_path])
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["judge"]["ranks"] is True
    assert [row["name"] for row in found["methods"]] == ["sft", "best of 4", "ppo"]


def test_a_judge_must_have_been_measured(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="a set named `all`"):
        worth_of(tmp_path)
