"""The table of a study: what is sure of a mean over seeds and prompts, by hand and by a second way; what may be said of it."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from stages.small import Done, carry_out, chats, pairs, prompts, read, write

from benchmarks.crossed import crossed, holm
from benchmarks.study import Worth, _trails, lines_of, main, plots, summary, table, worth_of
from benchmarks.study_runs import Answer, Cost, Method, Passed, Study, read_study
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


def test_numbers_that_are_all_the_same_and_a_single_one_have_no_width() -> None:
    assert math.isnan(crossed([[2.0, 2.0], [2.0, 2.0]]).low)
    assert crossed([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]).p == 0.25
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


SFT = Method("sft", 1, {0: answers([0.0, 0.2, 0.4], 0.0), 1: answers([0.1, 0.1, 0.4], 0.0)}, {0: Cost(), 1: Cost()})
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
    one = Method("sft", 1, {0: answers([0.0, 1.0, 1.0, 0.0], 0.0)}, {0: Cost()})
    other = Method("grpo", 1, {0: answers([1.0, 1.0, 1.0, 0.0], 1.0)}, {0: Cost(5, 5, 5)})
    study = Study("sft", list("abcd"), ["sums", "sums", "logic", "logic"], [one, other], {})
    text = table(study, lines_of(study, None), None)
    assert study.verified
    assert text.startswith("Gold is right or wrong by code.\n")
    assert "accuracy, %" in text
    assert "+25.0 [" in text
    assert "| method | sums | logic |" in text
    assert "| grpo | 100 | 50 [" in text, "answers that are all alike claim no width"


def test_the_plots_are_pictures_of_their_own() -> None:
    """Best of n is on a line from sft; the way of ppo is the mean of its seeds; no variable of the report's page is left."""
    found = plots(STUDY, lines_of(STUDY, GOOD))
    assert list(found) == ["kl.svg", "compute.svg"]
    for svg in found.values():
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg
        assert "best of 4" in svg
        assert "ppo" in svg


def test_the_way_of_a_method_begins_where_its_reward_model_was_paid_for() -> None:
    """It cost 4,000 tokens, of which 2,100 in its own stage; its looks are at 3 nats in the mean."""
    assert _trails(STUDY) == [[(0.0, 1900.0, 0.0), (3.0, 4000.0, pytest.approx(0.7))]]


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


LITTLE = {"sampling": {"max_tokens": 6}, "prompts": "./prompts.jsonl"}
STAGES = {
    "sft": {"kind": "sft", "init": "base", "data": "./chats.jsonl", "epochs": 1, "optim": {"lr": 1e-3}},
    "rm": {"kind": "reward_model", "init": "sft", "data": "./pairs.jsonl", "validation": "./pairs.jsonl", "optim": {"lr": 1e-3}},
    "gold": {"kind": "reward_model", "init": "base", "data": "./turned.jsonl", "optim": {"lr": 1e-3}},
    "ppo": {
        "kind": "rl",
        "init": "sft",
        "validation": "./prompts.jsonl",
        "eval_every": 2,
        "steps": 3,
        "prompts_per_step": 2,
        "n": 2,
        **LITTLE,
        "scorer": {"kind": "reward_model", "model": "rm"},
        "gold": {"kind": "reward_model", "model": "gold"},
        "optim": {"lr": 1e-3},
        "critic": {"init": "rm", "tune": {"kind": "last", "layers": 1}},
    },
    "report": {
        "kind": "evaluate",
        "gold": {"kind": "reward_model", "model": "gold"},
        "reference": "sft",
        "suites": ["gold", "drift"],
        **LITTLE,
        "contenders": [
            {"name": "sft", "model": "sft"},
            {"name": "best of 2", "model": "sft", "n": 2, "scorer": {"kind": "reward_model", "model": "rm"}, "before": "sft"},
            {"name": "ppo", "model": "ppo", "scorer": {"kind": "reward_model", "model": "rm"}, "before": "sft"},
        ],
    },
}


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Done]]:
    """Two seeds of a small study on the tiny model. Not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XWIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = []
        for seed in (0, 1):
            folder = tmp_path_factory.mktemp("study")
            write(folder / "chats.jsonl", chats(["yes", "no"] * 4))
            write(folder / "prompts.jsonl", prompts(4))
            write(folder / "pairs.jsonl", pairs("yes", "no", 8))
            write(folder / "turned.jsonl", pairs("no", "yes", 8))
            made.append(carry_out(folder, tiny_folder, STAGES, seed=seed))
        yield made


def sampled(path: Path) -> int:
    return sum(len(row["completion"]) for row in read(path))


def test_a_study_is_what_its_runs_say(runs: list[Done]) -> None:
    """Costs by a second way, from the files: a method pays for the reward model that it stands on, not for SFT, nor for the judge that
    looks on; and the table of the run."""
    study = read_study([done.path for done in runs], {})
    methods = {method.name: method for method in study.methods}
    assert list(methods) == ["sft", "best of 2", "ppo"]
    assert (study.reference, study.prompts) == ("sft", [f"Say it {i}." for i in range(4)])
    for seed, done in enumerate(runs):
        trained = {stage: sum(done.curve(stage, "tokens").values()) for stage in ("rm", "ppo")}
        written = sampled(done.stage("ppo") / "rollouts.jsonl")
        ppo, best = methods["ppo"].cost[seed], methods["best of 2"].cost[seed]
        assert (ppo.trained, ppo.written) == (trained["rm"] + trained["ppo"], written)
        assert (best.trained, best.written) == (trained["rm"], sampled(done.stage("report") / "rollouts-best of 2.jsonl"))
        assert methods["sft"].cost[seed] == Cost()
        assert ppo.seconds >= sum(done.curve("rm", "seconds").values()) + sum(done.curve("ppo", "seconds").values())
        first, *_, last = methods["ppo"].trail[seed]
        gold = done.curve("ppo", "validation_gold")
        assert list(gold) == [0, 1, 2]  # before the first round, after the second, at the end
        assert (first.kl, first.tokens, first.gold) == (0.0, 0.0, 0.0)
        assert (last.tokens, last.gold) == (trained["ppo"] + written, gold[2] - gold[0])
        assert study.proxies[seed] == done.metrics("rm")["final_accuracy"]
        cells = {(c["model"], c["metric"]): c["value"] for c in json.loads((done.stage("report") / "table.json").read_text())}
        for line in lines_of(read_study([done.path], {}), None):
            assert (cells[line.name, "gold"], cells[line.name, "length"]) == pytest.approx((line.gold.mean, line.length))
    assert all(answer.kl == 0 for some in methods["sft"].answers.values() for answer in some)
    assert not study.verified


def test_a_run_of_the_same_seed_adds_what_the_first_one_lacks(runs: list[Done]) -> None:
    """The same run again has nothing new; what rows cost that no stage made is given."""
    alone = read_study([runs[0].path], {})
    twice = read_study([runs[0].path, runs[0].path], {"sft": {"written": 5.0, "trained": 7.0, "seconds": 60.0}})
    assert [method.answers for method in twice.methods] == [method.answers for method in alone.methods]
    assert twice.methods[0].cost[0] == Cost(5.0, 7.0, 60.0)


def test_runs_on_other_prompts_are_refused(runs: list[Done], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[1].path, tmp_path / "other"))
    samples = other / "stages" / "report" / "samples.jsonl"
    samples.write_text(samples.read_text().replace("Say it", "Sing it"))
    with pytest.raises(UserError, match="other prompts"):
        read_study([runs[0].path, other], {})
    shutil.rmtree(other / "stages" / "report")
    with pytest.raises(UserError, match="no finished evaluate stage"):
        read_study([other], {})


def test_the_command_writes_table_and_plots(
    runs: list[Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["study", *(str(done.path) for done in runs), "--to", str(tmp_path / "out")])
    assert main() == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compute.svg", "kl.svg", "study.json", "table.md"]
    assert capsys.readouterr().out == (tmp_path / "out" / "table.md").read_text()
    monkeypatch.setattr("sys.argv", ["study", str(tmp_path / "nothing")])
    assert main() == 2
    assert "no such folder" in capsys.readouterr().err
