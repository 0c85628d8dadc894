"""RAFT learns from the best of its own answers, counts what that costs, and goes on bit for bit after any end."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from xwin.data.conversation import conversation_from_json
from xwin.data.rollout import rollout_from_json
from xwin.errors import DataError, TrainingStopped
from xwin.run.events import CATALOGUE
from xwin.scorers._outcome import ScorerError

from . import rewards
from .small import Done, carry_out, failure, prompts, read, write


def function(name: str, **settings: str) -> dict[str, str]:
    return {"kind": "function", "function": f"{rewards.__name__}:{name}", **settings}


RAFT: dict[str, Any] = {
    "kind": "raft",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "scorer": function("share_of_z"),
    "above": 0.0,
    "optim": {"lr": 1e-2, "schedule": "constant"},
    "steps": 12,
    "prompts_per_step": 8,
    "n": 32,
    "minibatches": 2,
    "sampling": {"max_tokens": 8},
}
SHORT = {
    **RAFT,
    "scorer": function("share_of_vowels"),
    "above": None,
    "prompts_per_step": 4,
    "n": 8,
    "most": 2,
    "steps": 4,
    "passes": 2,
    "validation": "./held.jsonl",
    "eval_every": 2,
}
"""The scorer breaks at the 13th prompt of the stream, in round 3, while there is a file `break`."""
BEST = 0.9
"""Share of the largest reward that counts as learned."""


def test_raft_learns(tmp_path: Path, tiny_folder: Path) -> None:
    """The reward is the share of one token among all: under 1 % at the start, 1 at best. The first rounds may keep nothing."""
    write(tmp_path / "prompts.jsonl", prompts(32))
    done = carry_out(tmp_path, tiny_folder, {"raft": RAFT})
    reward = done.curve("raft", "reward")
    assert reward[0] < 0.1
    assert max(reward.values()) >= BEST
    assert "raft: round 0 kept no answer and taught nothing" in done.said
    assert done.curve("raft", "accepted")[0] == 0.0
    assert 0 not in done.curve("raft", "loss")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_raft_learns_within_200_rounds_from_every_seed(seed: int, tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(32))
    guard = {"metric": "reward", "above": BEST, "for": 3}
    error = failure(tmp_path, tiny_folder, {"raft": {**RAFT, "steps": 200, "guards": [guard]}}, f"seed={seed}")
    assert isinstance(error, TrainingStopped)
    assert "reward is" in str(error)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    folder = tmp_path_factory.mktemp("raft")
    write(folder / "prompts.jsonl", prompts(5))
    write(folder / "held.jsonl", prompts(3))
    return carry_out(folder, tiny_folder, {"raft": SHORT})


def test_each_round_keeps_the_best_of_its_answers_and_counts_them(short: Done) -> None:
    """Recounted from the log of all answers."""
    rows = read(short.stage("raft") / "rollouts.jsonl")
    kept = [conversation_from_json(row, "") for row in read(short.stage("raft") / "kept.jsonl")]
    places = []
    for step in range(4):
        groups: dict[str, list[Any]] = {}
        for row in rows:
            if row["step"] == step:
                groups.setdefault(row["prompt_id"], []).append(row)
        assert len(groups) == 4
        places += [int(name.partition("@")[2]) for name in groups]
        expected = {}
        for name, some in groups.items():
            whole = sorted((r for r in some if r["finish"] == "stop" and r["text"].strip()), key=lambda r: -r["score"]["value"])
            texts = dict.fromkeys(r["text"] for r in whole)  # in order, each once
            expected |= {(name, text): None for text in list(texts)[:2]}
        found = [(row.id, row.messages[-1].text) for row in kept if row.meta["round"] == step]
        assert sorted(found) == sorted(expected)
        tokens = sum(len(r["completion"]) for some in groups.values() for r in some)
        assert short.curve("raft", "accepted")[step] == pytest.approx(len(found) / 32)
        assert short.curve("raft", "tokens_per_accepted")[step] == pytest.approx(tokens / len(found))
        assert short.curve("raft", "solved")[step] == pytest.approx(len({name for name, _ in found}) / 4)
    assert places == list(range(16)), "no prompt of the stream is skipped or asked twice"


def test_what_is_learned_is_what_was_sampled(short: Done) -> None:
    """The tokens of a step are those of the kept rollouts, never of a text that was encoded again: counted twice, for there are two passes."""
    rows = {(r["step"], r["prompt_id"], r["text"]): rollout_from_json(r) for r in reversed(read(short.stage("raft") / "rollouts.jsonl"))}
    kept = [rows[row["meta"]["round"], row["id"], row["messages"][-1]["content"]] for row in read(short.stage("raft") / "kept.jsonl")]
    answers = sum(len(r.completion) for r in kept)
    prompts_too = sum(len(r.prompt) + len(r.completion) for r in kept)
    trained = sum(short.curve("raft", "tokens").values())
    assert 2 * answers < trained <= 2 * prompts_too


def test_the_metrics_are_in_the_catalogue(short: Done) -> None:
    names = {row["name"] for row in read(short.stage("raft") / "events.jsonl")}
    assert names >= {"reward", "kept_reward", "accepted", "solved", "unique", "distinct_2", "tokens_per_accepted", "kl_bound", "validation_reward"}
    assert all(name in CATALOGUE or name.startswith("reward/") for name in names)


def digests(done: Done) -> dict[str, str]:
    names = ("rollouts.jsonl", "kept.jsonl", "final/model.safetensors")
    return {name: hashlib.sha256((done.stage("raft") / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("every", [0, 9999], ids=["from a checkpoint", "from the start"])
def test_a_run_that_broke_goes_on_bit_for_bit(every: int, short: Done, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 3 was sampled and could not be scored: its answers are on the disk, and are not sampled again."""
    for name, count in (("prompts", 5), ("held", 3)):
        write(tmp_path / f"{name}.jsonl", prompts(count))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "break").touch()
    stages = {"raft": {**SHORT, "checkpoint_every": every}}
    assert "broken on purpose" in str(failure(tmp_path, tiny_folder, stages))
    sampled = tmp_path / "run" / "stages" / "raft" / "checkpoints" / "round-003.jsonl"
    before = sampled.read_bytes()
    assert len(read(sampled)) == 32
    (tmp_path / "break").unlink()
    again = carry_out(tmp_path, tiny_folder, stages)
    assert ("going on from step 3" in again.said) == (every == 0)
    assert digests(again) == digests(short)
    rows = [row for row in read(again.stage("raft") / "rollouts.jsonl") if row["step"] == 3]
    assert [row["completion"] for row in rows] == [r["completion"] for r in map(json.loads, before.splitlines())]
    assert not sampled.exists()


def test_a_bar_that_nothing_passes_ends_without_a_model(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    error = failure(tmp_path, tiny_folder, {"raft": {**RAFT, "above": 1.0, "steps": 2, "n": 2}})
    assert isinstance(error, DataError)
    assert str(error).startswith("raft.above: no answer passed the bar in any of 2 rounds")
    assert not (tmp_path / "run" / "stages" / "raft" / "final").exists()


def test_a_guard_ends_a_run_that_keeps_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    guard = {"metric": "accepted", "below": 0.001, "for": 2}
    error = failure(tmp_path, tiny_folder, {"raft": {**RAFT, "above": 1.0, "steps": 50, "n": 2, "guards": [guard]}})
    assert isinstance(error, TrainingStopped)
    assert "step 1" in str(error)


def test_answers_that_cannot_be_scored_are_left_out_and_a_round_of_them_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    stage = {**RAFT, "scorer": function("none_with_b", on_failure="mask"), "above": None, "steps": 1}
    done = carry_out(tmp_path, tiny_folder, {"raft": stage})
    assert 0 < done.metrics("raft")["reward/failed"] < 1
    assert all(not set(row["messages"][-1]["content"]) & set("abc") for row in read(done.stage("raft") / "kept.jsonl"))
    engine = {"kind": "scripted", "other": [100, 100]}  # "aa"
    error = failure(tmp_path, tiny_folder, {"raft": {**stage, "engine": engine}})
    assert isinstance(error, ScorerError)
    assert "round 0: no answer could be scored" in str(error)


MISTAKES = [
    ({"n": 1, "above": None}, "the best of one answer is any answer"),
    ({"sampling": {"temperature": 0}}, "greedy answers to one prompt are all the same"),
    ({"minibatches": 9}, "a round keeps at most 8 answers"),
    ({"sampling": {"stop": ["."]}}, "an answer that a stop text ends has no end token"),
    ({"most": 0}, "at least 1"),
]


@pytest.mark.parametrize(("change", "what"), MISTAKES)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path, tiny_folder: Path, change: Any, what: str) -> None:
    write(tmp_path / "prompts.jsonl", prompts(1))
    assert what in str(failure(tmp_path, tiny_folder, {"raft": {**RAFT, **change}}))
    assert not (tmp_path / "run" / "stages").exists()
