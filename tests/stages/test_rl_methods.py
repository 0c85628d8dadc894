"""Every method of the policy-gradient family learns; refilled rounds and unscored answers are counted and resume exactly."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from xwin.data.rollout import rollout_from_json
from xwin.errors import DataError, TrainingStopped
from xwin.recipe.schema import read_recipe
from xwin.scorers._outcome import ScorerError, has_failed

from . import rewards
from .small import Done, carry_out, failure, prompts, read, write

RL: dict[str, Any] = {
    "kind": "rl",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "scorer": {"kind": "function", "function": f"{rewards.__name__}:share_of_z"},
    "kl": None,
    "optim": {"lr": 1e-2, "schedule": "constant"},
    "prompts_per_step": 4,
    "n": 8,
    "minibatches": 1,
    "sampling": {"max_tokens": 8},
}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"objective": {"kind": "grpo", "clip": 0.2, "weighting": {"kind": "sequence_mean"}}, "credit": "group"},
    "grpo_with_kl": {
        "objective": {"kind": "grpo", "kl": {"coef": 0.001, "estimator": "k3"}},
        "credit": {"kind": "group", "correction": {"kind": "truncate"}},
        "minibatches": 2,
    },
    "dr_grpo": {"objective": {"kind": "grpo", "weighting": {"kind": "fixed_length", "tokens": 8}}, "credit": {"kind": "group", "scale": "none"}},
    "dapo": {"objective": {"kind": "grpo", "clip": [0.2, 0.28]}, "credit": "group", "refill": {"draws": 3}, "minibatches": 2},
    "rloo": {"objective": "reinforce", "credit": {"kind": "group", "baseline": "leave_one_out", "scale": "none"}, "kl": {"coef": 0.001}},
    "reinforce++": {"objective": {"kind": "grpo", "clip": 0.2}, "credit": "round", "n": 1, "prompts_per_step": 32, "kl": {"coef": 0.001}},
    "reinforce++_baseline": {
        "objective": {"kind": "grpo", "clip": 0.2, "kl": {"coef": 0.001, "estimator": "k2"}},
        "credit": {"kind": "round", "baseline": "mean"},
        "kl": {"coef": 0},
    },
    "gspo": {"objective": {"kind": "gspo", "clip": [3e-3, 4e-3]}, "credit": "group", "minibatches": 2},
    "cispo": {"objective": "cispo", "credit": "group", "minibatches": 2},
    "ppo": {
        "objective": "ppo",
        "credit": "gae",
        "critic": {"init": "base", "tune": {"kind": "full"}, "optim": {"lr": 3e-3, "schedule": "constant"}},
        "minibatches": 2,
    },
}
QUICK = {"grpo": 16, "cispo": 12}
"""Method -> rounds within which it must have learned in the quick suite."""
BEST = 0.9
"""Share of the largest reward that counts as learned."""


@pytest.mark.parametrize("method", QUICK)
def test_a_method_learns(method: str, tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(32))
    reward = carry_out(tmp_path, tiny_folder, {"rl": {**RL, **METHODS[method], "steps": QUICK[method]}}).curve("rl", "reward")
    assert reward[0] < 0.1
    assert max(reward.values()) >= BEST


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_within_200_rounds_from_every_seed(method: str, seed: int, tmp_path: Path, tiny_folder: Path) -> None:
    """The reward is the share of one token among all: 0.4 % at the start, 1 at best. A guard ends the run once it has held for ten rounds."""
    write(tmp_path / "prompts.jsonl", prompts(32))
    guard = {"metric": "reward", "above": BEST, "for": 10}
    error = failure(tmp_path, tiny_folder, {"rl": {**RL, **METHODS[method], "steps": 200, "guards": [guard]}}, f"seed={seed}")
    assert isinstance(error, TrainingStopped)
    assert "reward is" in str(error)


REFILL: dict[str, Any] = {
    **RL,
    "scorer": {"kind": "function", "function": f"{rewards.__name__}:share_of_vowels"},
    "objective": "grpo",
    "credit": "group",
    "prompts_per_step": 3,
    "n": 2,
    "steps": 4,
    "sampling": {"max_tokens": 4},
    "refill": {"draws": 3},
    "checkpoint_every": 0,
}


@pytest.fixture(scope="module")
def refilled(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    folder = tmp_path_factory.mktemp("refilled")
    write(folder / "prompts.jsonl", prompts(5))
    return carry_out(folder, tiny_folder, {"rl": REFILL})


def test_groups_that_all_score_the_same_are_replaced_and_counted(refilled: Done) -> None:
    """Whatever was drawn is in the log; what was dropped has no spread; no prompt of the stream is skipped or drawn twice."""
    rows = read(refilled.stage("rl") / "rollouts.jsonl")
    assert any(row.get("dropped") for row in rows)
    places = []
    for step in range(4):
        groups: dict[str, list[Any]] = {}
        for row in rows:
            if row["step"] == step:
                groups.setdefault(row["prompt_id"], []).append(row)
        spread = {name: len({row["score"]["value"] for row in some}) > 1 for name, some in groups.items()}
        kept = [name for name, some in groups.items() if not some[0].get("dropped")]
        assert refilled.curve("rl", "drawn")[step] == len(groups)
        assert refilled.curve("rl", "zero_spread")[step] == pytest.approx(1 - sum(spread.values()) / len(groups))
        assert all(spread[name] for name in kept) or not any(spread.values())
        assert len(kept) == 3 or (len(kept) == sum(spread.values()) and len(groups) > 3)
        places += [int(name.partition("@")[2]) for name in groups]
    assert sorted(places) == list(range(len(places)))


def test_a_refilled_run_that_broke_goes_on_bit_for_bit(refilled: Done, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "prompts.jsonl", prompts(5))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "break").touch()
    error = failure(tmp_path, tiny_folder, {"rl": REFILL})
    assert isinstance(error, ScorerError)
    assert "broken on purpose" in str(error)
    (tmp_path / "break").unlink()
    again = carry_out(tmp_path, tiny_folder, {"rl": REFILL})
    assert "going on from step" in again.said
    for name in ("rollouts.jsonl", "final/model.safetensors"):
        first, second = (hashlib.sha256((done.stage("rl") / name).read_bytes()).hexdigest() for done in (refilled, again))
        assert first == second, name
    assert again.curve("rl", "drawn") == refilled.curve("rl", "drawn")


def test_what_cannot_be_scored_is_left_out_and_counted(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(8))
    scorer = {"kind": "function", "function": f"{rewards.__name__}:none_with_b", "on_failure": "mask"}
    stage = {**RL, "scorer": scorer, "objective": "grpo", "credit": "group", "steps": 2, "n": 16, "prompts_per_step": 2}
    done = carry_out(tmp_path, tiny_folder, {"rl": stage})
    rows = [rollout_from_json(row) for row in read(done.stage("rl") / "rollouts.jsonl")]
    failed = sum(has_failed(r.score) for r in rows)
    assert 0 < failed < len(rows)
    shares = done.curve("rl", "reward/failed")
    assert sum(shares.values()) * 32 == pytest.approx(failed)
    error = failure(tmp_path, tiny_folder, {"rl": {**stage, "scorer": {**scorer, "on_failure": "stop"}}})
    assert isinstance(error, ScorerError)
    assert "none_with_b failed" in str(error)


def test_validation_leaves_out_what_could_not_be_scored(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """q0 cannot be scored and q1 scores 1: the mean is 1, not a half. When neither can, the run ends."""
    monkeypatch.chdir(tmp_path)
    source = "def score(prompt, answers):\n    bad = prompt.id in {bad}\n    return [None if bad else 1.0 + k for k in range(len(answers))]\n"
    (tmp_path / "sometimes.py").write_text(source.replace("{bad}", "{'q0'}"))
    write(tmp_path / "prompts.jsonl", prompts(2))
    scorer = {"kind": "function", "function": "sometimes:score", "on_failure": "mask"}
    stage = {**RL, "scorer": scorer, "objective": "grpo", "credit": "group", "steps": 1, "eval_every": 1, "validation": "./prompts.jsonl", "n": 2}
    done = carry_out(tmp_path, tiny_folder, {"rl": stage})
    assert done.curve("rl", "validation_reward") == {0: 1.0}
    assert done.metrics("rl")["validation_failed"] == 1.0
    (tmp_path / "sometimes.py").write_text(source.replace("{bad}", "{'q0', 'q1'}"))
    assert "no answer to a validation prompt could be scored" in str(failure(tmp_path, tiny_folder, {"rl": stage}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tokens_per_batch": 60}, "do not fit tokens_per_batch of 60"),
        ({"sampling": {"max_tokens": 100_000}, "tokens_per_batch": 1_000_000}, "do not fit the model's context of"),
    ],
)
def test_a_prompt_without_room_for_its_answer_is_found_before_the_first_round(tmp_path: Path, tiny_folder: Path, change: Any, what: str) -> None:
    rows = prompts(40)
    rows[23]["prompt"] += " Please." * 5
    write(tmp_path / "prompts.jsonl", rows)
    error = failure(tmp_path, tiny_folder, {"rl": {**RL, **METHODS["grpo"], "prompts_per_step": 1, "steps": 3, **change}})
    assert isinstance(error, DataError)
    assert "prompt q23" in str(error)
    assert what in str(error)
    assert not (tmp_path / "run" / "stages" / "rl" / "rollouts.jsonl").exists()


def test_the_plain_policy_gradient_measures_no_ratio(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    done = carry_out(tmp_path, tiny_folder, {"rl": {**RL, **METHODS["rloo"], "steps": 1}})
    assert done.curve("rl", "ratio_gap") == {}
    assert done.curve("rl", "entropy")


def test_an_engine_that_is_corrected_for_warns_and_does_not_stop() -> None:
    from xwin.run.guards import Guard, Watch
    from xwin.stages.rl import Rl

    base = {key: value for key, value in RL.items() if key != "kind"} | {"objective": "grpo"}
    correction = {"credit": {"kind": "group", "correction": {"kind": "truncate"}}}
    own = {"guards": [{"metric": "engine_gap", "above": 0.5}]}
    found = {}
    for name, change in {"plain": {"credit": "group"}, "corrected": correction, "own": {**correction, **own}}.items():
        spec = Rl.model_validate({**base, **change})
        found[name] = [[alarm.action for alarm in Watch(spec._watched().guards).feed(0, {"engine_gap": gap})] for gap in (0.06, 0.6)]
    assert found == {"plain": [[], ["stop"]], "corrected": [["warn"], ["warn"]], "own": [[], ["stop"]]}
    assert Guard(metric="kl", above=1.0) in Rl.model_validate({**base, **correction, "guards": [{"metric": "kl", "above": 1.0}]})._watched().guards


def test_a_round_in_which_nothing_could_be_scored_stops(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing.py").write_text("def score(prompt, answers):\n    raise ValueError('never')\n")
    stage = {**RL, "scorer": {"kind": "function", "function": "nothing:score", "on_failure": "mask"}, "objective": "grpo", "credit": "group"}
    error = failure(tmp_path, tiny_folder, {"rl": stage})
    assert isinstance(error, ScorerError)
    assert "no answer of the round could be scored" in str(error)


def test_without_a_reference_no_kl_is_measured_and_with_a_price_of_0_it_is(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    stage = {**RL, **METHODS["cispo"], "steps": 2, "prompts_per_step": 2, "n": 4, "sampling": {"max_tokens": 4}}
    stages = {"none": stage, "free": {**stage, "kl": {"coef": 0}}}
    done = carry_out(tmp_path, tiny_folder, stages)
    assert done.curve("none", "kl") == {}
    assert done.curve("free", "kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert set(done.curve("free", "kl")) == {0, 1}


MISTAKES = [
    ({"credit": "group", "objective": "grpo", "critic": {"init": "base"}}, "group reads no values, so the critic would learn for nothing"),
    ({"credit": "gae", "objective": "grpo"}, "gae needs the column value"),
    ({"credit": "group", "objective": "grpo", "n": 1}, "credit group compares the answers to one prompt, and there is one"),
    ({"credit": "group", "objective": "reinforce", "passes": 2}, "in a second pass they are not"),
    ({"credit": "group", "objective": "reinforce", "minibatches": 2}, "after the first minibatch they are not"),
    ({"credit": {"kind": "round", "baseline": "mean"}, "objective": "grpo", "n": 1}, "is 0 when it is alone"),
    ({"credit": "group", "objective": "grpo", "kl": {"coef": 0, "target": 1.0}}, "one of 0 never reaches a target"),
    ({"credit": {"kind": "group", "correction": {"kind": "mask", "low": 2, "high": 1}}, "objective": "grpo"}, "low 2 is above high 1"),
    ({"credit": "group", "objective": {"kind": "grpo", "kl": {"coef": 0.1}}, "kl": {"coef": 0.1}}, "KL would be paid twice"),
    ({"credit": "round", "objective": "grpo", "n": 1, "refill": {}}, "every group would be dropped"),
    ({"credit": "group", "objective": "cispo", "sampling": {"top_p": 0.9}}, "the ratio is biased"),
    ({"credit": "group", "objective": "grpo", "sampling": {"stop": ["."]}}, "an answer that a stop text ends has no end token"),
    ({"credit": "group", "objective": "grpo", "minibatches": 5}, "a pass over 4 prompts has no more optimizer steps than prompts"),
    ({"credit": "group", "objective": "sft"}, "sft does not read the advantage"),
    ({"credit": "group", "objective": "value"}, "value needs the column returns, value, and group does not make it"),
]


@pytest.mark.parametrize(("change", "what"), MISTAKES)
def test_a_combination_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, tiny_folder: Path, change: Any, what: str) -> None:
    write(tmp_path / "prompts.jsonl", prompts(1))
    error = failure(tmp_path, tiny_folder, {"rl": {**RL, **change}})
    assert what in str(error)
    assert not (tmp_path / "run" / "stages").exists()


def test_the_methods_round_trip_through_the_resolved_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(1))
    import yaml

    stages = {name.replace("+", "p"): {**RL, **method} for name, method in METHODS.items()}
    recipe = {"name": "all", "models": {"base": {"path": str(tiny_folder)}}, "stages": stages}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe))
    first = read_recipe(tmp_path / "all.yaml").recipe
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(first.settings()))
    assert read_recipe(tmp_path / "all.yaml").recipe == first


def test_training_ends_when_answers_no_longer_get_better(tmp_path: Path, tiny_folder: Path) -> None:
    """A rate of 1e-30 moves nothing, so every evaluation after the first one is in vain; the first policy is what is published."""
    write(tmp_path / "prompts.jsonl", prompts(8))
    stage = {**RL, **METHODS["grpo"], "optim": {"lr": 1e-30}, "validation": "./prompts.jsonl", "eval_every": 2, "patience": 2, "steps": 9, "n": 2}
    done = carry_out(tmp_path, tiny_folder, {"rl": stage})
    assert list(done.curve("rl", "validation_reward")) == [1, 3, 5]
    assert max(done.curve("rl", "reward")) == 5
    assert "rl: stopped early at step 5: the best was step 1" in done.said
    assert done.metrics("rl")["best_step"] == 1
    through = carry_out(tmp_path, tiny_folder, {"rl": {**stage, "patience": None, "steps": 7}})
    assert max(through.curve("rl", "reward")) == 6
