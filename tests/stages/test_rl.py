"""Reinforcement learning: it starts where the policy is, its numbers agree with each other, and a task that can be learned is learned."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from xwin.credit.base import to_sample
from xwin.data.batch import unpack
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score, rollout_from_json, scored
from xwin.errors import RecipeError
from xwin.learning.learner import Learner
from xwin.objectives.ppo import Ppo
from xwin.scorers._outcome import failed
from xwin.stages._rl import Packing, RolloutLog, Team, describe, divergence, in_order, minibatches, repetition
from xwin.stages.rl import Kl, placed

from .small import Done, carry_out, chats, failure, pairs, prompts, read, write

STEPS = 8
PPO = {
    "kind": "rl",
    "init": "sft",
    "prompts": "./prompts.jsonl",
    "scorer": {"kind": "reward_model", "model": "rm"},
    "critic": {"init": "rm", "optim": {"lr": 3e-3, "schedule": "constant"}},
    "optim": {"lr": 1e-3, "schedule": "constant"},
    "steps": STEPS,
    "prompts_per_step": 8,
    "sampling": {"max_tokens": 6},
}
CHAIN = {
    "sft": {
        "kind": "sft",
        "init": "base",
        "data": "./chat.jsonl",
        "epochs": 25,
        "optim": {"lr": 1e-2},
        "tokens_per_step": 8192,
        "tokens_per_batch": 8192,
    },
    "rm": {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 4, "optim": {"lr": 3e-3}, "tokens_per_batch": 8192},
    "ppo": PPO,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    """The policy says "a" and "b" alike; the reward model prefers "a"."""
    folder = tmp_path_factory.mktemp("rl")
    write(folder / "chat.jsonl", chats(["a", "b"] * 12))
    write(folder / "pairs.jsonl", pairs("a", "b", 16))
    write(folder / "prompts.jsonl", prompts(20))
    return carry_out(folder, tiny_folder, CHAIN)


def test_the_reward_rises(learned: Done) -> None:
    reward = learned.curve("ppo", "reward")
    assert list(reward) == list(range(STEPS))
    assert (reward[STEPS - 2] + reward[STEPS - 1]) / 2 > (reward[0] + reward[1]) / 2 + 0.5
    said = [row["text"] for row in read(learned.stage("ppo") / "rollouts.jsonl")]
    assert said[-32:].count("a") > said[:32].count("a") + 4


def test_the_first_step_starts_at_the_reference(learned: Done) -> None:
    assert learned.curve("ppo", "kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert learned.curve("ppo", "kl_k3")[0] == pytest.approx(0.0, abs=1e-5)
    assert learned.curve("ppo", "kl")[STEPS - 1] > 0.1


def test_the_ratio_starts_at_1_and_the_engine_agrees_at_every_step(learned: Done) -> None:
    assert max(learned.curve("ppo", "ratio_gap").values()) < 1e-5
    assert max(learned.curve("ppo", "engine_gap").values()) < 1e-5
    assert len(learned.curve("ppo", "ratio_gap")) == STEPS


def test_the_critic_learns_what_answers_are_worth(learned: Done) -> None:
    values = learned.curve("ppo", "value_loss")
    assert (values[STEPS - 2] + values[STEPS - 1]) / 2 < 0.8 * values[0]


@pytest.mark.parametrize(("tokens", "share"), [("aaaaaa", 2 / 3), ("abcdefgh", 0.0), ("abcdabcd", 1 / 5), ("abc", 0.0), ("", 0.0)])
def test_repetition_is_the_share_of_runs_of_four_that_came_before(tokens: str, share: float) -> None:
    """By hand: aaaaaa holds three runs, all the same; abcdabcd five, the last of which is the first."""
    assert repetition([ord(c) for c in tokens]) == pytest.approx(share)


def test_numbers_of_a_step_follow_from_its_rollouts(learned: Done) -> None:
    """Reward, length, share cut and share of groups without spread of each step, from the log of answers alone."""
    rows = read(learned.stage("ppo") / "rollouts.jsonl")
    for step in range(STEPS):
        mine = [rollout_from_json(row) for row in rows if row["step"] == step]
        assert len(mine) == 8 * 4
        groups: dict[str, list[float]] = {}
        for r in mine:
            assert r.score is not None
            groups.setdefault(r.prompt_id, []).append(r.score.value)
        spread = [max(row) - min(row) for row in groups.values()]
        expected = {
            "reward": sum(sum(row) for row in groups.values()) / 32,
            "length": sum(len(r.completion) for r in mine) / 32,
            "cut": sum(r.finish == "length" for r in mine) / 32,
            "zero_spread": sum(s < 1e-9 for s in spread) / 8,
        }
        assert {name: learned.curve("ppo", name)[step] for name in expected} == pytest.approx(expected)


def test_each_round_is_written_by_the_policy_of_the_round_before(learned: Done) -> None:
    """The version of the weights that wrote a round is the number of optimizer steps so far, two per round."""
    rows = read(learned.stage("ppo") / "rollouts.jsonl")
    assert {(row["step"], row["version"]) for row in rows} == {(step, 2 * step) for step in range(STEPS)}


def test_every_prompt_comes_once_before_any_comes_again(learned: Done) -> None:
    rows = read(learned.stage("ppo") / "rollouts.jsonl")
    order = list(dict.fromkeys(row["prompt_id"] for row in rows))
    assert [int(name.partition("@")[2]) for name in order] == list(range(8 * STEPS))
    for epoch in range(3):
        assert len({name.partition("@")[0] for name in order[20 * epoch : 20 * epoch + 20]}) == 20


def test_log_probs_of_the_first_round_are_those_of_the_published_start(learned: Done) -> None:
    """transformers reads each answer alone and gives the log-probs that the engine wrote down."""
    model = AutoModelForCausalLM.from_pretrained(learned.stage("sft") / "final")
    for row in read(learned.stage("ppo") / "rollouts.jsonl")[:8]:
        r = rollout_from_json(row)
        with torch.no_grad():
            logp = model(torch.tensor([r.prompt + r.completion])).logits[0].log_softmax(-1)
        start = len(r.prompt)
        assert [float(logp[start + i - 1, t]) for i, t in enumerate(r.completion)] == pytest.approx(list(r.logp), abs=1e-5)


def test_temperature_reaches_both_sides_of_the_ratio(learned: Done, tiny_folder: Path) -> None:
    again = carry_out(
        learned.path.parent, tiny_folder, CHAIN, "ppo.sampling={temperature: 0.7, max_tokens: 6}", "ppo.steps=2", "ppo.tune={kind: lora}"
    )
    assert max(again.curve("ppo", "ratio_gap").values()) < 1e-5
    assert max(again.curve("ppo", "engine_gap").values()) < 1e-5
    assert again.curve("ppo", "kl")[0] == pytest.approx(0.0, abs=1e-6)


def test_the_price_of_kl_follows_its_target_by_hand() -> None:
    """Ziegler et al.: x (1 + 0.1 * clip(kl / target - 1, -0.2, 0.2))."""
    kl = Kl(coef=0.05, target=2.0, rate=0.1)
    assert kl.following(0.05, 2.0) == 0.05
    assert kl.following(0.05, 2.2) == pytest.approx(0.05 * 1.01)
    assert kl.following(0.05, 100.0) == pytest.approx(0.05 * 1.02)
    assert kl.following(0.05, -5.0) == pytest.approx(0.05 * 0.98)
    assert Kl(coef=0.05).following(0.05, 100.0) == 0.05


def test_the_price_moves_from_step_to_step(learned: Done, tiny_folder: Path) -> None:
    stages = {**CHAIN, "ppo": {**PPO, "kl": {"coef": 0.1, "target": 1e-4, "rate": 0.5}, "steps": 3}}
    again = carry_out(learned.path.parent, tiny_folder, stages)
    coef, kl = again.curve("ppo", "kl_coef"), again.curve("ppo", "kl")
    price = Kl(coef=0.1, target=1e-4, rate=0.5)
    assert coef[0] == 0.1
    assert coef[1] == pytest.approx(0.09)  # no KL yet, far below the target: the largest step down
    assert coef[2] == pytest.approx(price.following(coef[1], kl[1]))


@pytest.mark.parametrize(("groups", "count"), [(8, 2), (7, 3), (4, 1), (2, 3)])
def test_minibatches_partition_the_groups(groups: int, count: int) -> None:
    parts = minibatches(groups, count, seed=4)
    assert sorted(i for part in parts for i in part) == list(range(groups))
    assert len(parts) == min(groups, count)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert minibatches(groups, count, seed=4) == parts
    if groups > 4:
        assert minibatches(groups, count, seed=5) != parts


def test_a_prompt_that_comes_again_is_a_new_prompt() -> None:
    rows = [Conversation("q", (Message("user", "?"),)), Conversation("q", (Message("user", "?"),))]
    assert [p.id for p in placed(rows, 30)] == ["q@30", "q@31"]


def rollout(name: str, k: int, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Rollout:
    return Rollout(name, k, 0, prompt, completion, (-1.0,) * len(completion), "stop")


def test_columns_are_one_number_per_completion_token_in_order_of_groups(make_learner: Callable[..., Learner]) -> None:
    """Whatever minibatches they were packed in: each answer's numbers are those of its sequence alone."""
    user = Conversation("x", (Message("user", "?"),))
    groups = [Group(user, tuple(rollout(f"g{i}", k, (9, 8, 7 + i), (20 + i, 30 + k, 2)[k:]) for k in range(2)), ("", "")) for i in range(5)]
    policy, packing = make_learner(Ppo()), Packing(tokens=64, temperature=1.0)
    team = Team(policy, None, make_learner())
    found = in_order(team.columns(frozenset({"old_logp", "ref_logp"}), [[groups[3], groups[0]], [groups[4], groups[1], groups[2]]], packing), groups)
    rows = zip(found["old_logp"], found["ref_logp"], strict=True)
    for group in groups:
        for r in group.rollouts:
            (batch,) = packing.batches([to_sample(r, {})])
            mine = unpack(batch, policy.forward([batch], frozenset({"logp"}))[0].get("logp"))[f"{r.prompt_id}/{r.sample}"][len(r.prompt) :]
            old, ref = next(rows)
            assert old == pytest.approx(mine, abs=1e-5)
            assert ref == pytest.approx(mine, abs=1e-5)


def test_describe_by_hand() -> None:
    """Two answers of 1 and 2 tokens. log pi - log ref: 0.5; 0.25 and -0.75. k1 per answer: 0 / 2. k3 per token: mean of e^-d - 1 + d."""
    user = Conversation("x", (Message("user", "?"),))
    (group,) = scored([Group(user, (rollout("g", 0, (9,), (2,)), rollout("g", 1, (9,), (5, 2))), ("", ""))], [[Score(1.0), Score(1.0)]])
    columns = {"old_logp": [(-1.0,), (-1.5, -0.5)], "ref_logp": [(-1.5,), (-1.75, 0.25)]}
    found = describe([group]) | divergence([group], columns)
    assert found["kl"] == pytest.approx(0.0)
    assert found["kl_k3"] == pytest.approx(sum(math.exp(-d) - 1 + d for d in (0.5, 0.25, -0.75)) / 3)
    assert found["engine_gap"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert (found["length"], found["cut"], found["zero_spread"]) == (1.5, 0.0, 1.0)


def test_what_could_not_be_scored_is_in_no_mean() -> None:
    """Group a differs, b failed whole and counts for nothing; the part is that of the two answers which have it."""
    user = Conversation("x", (Message("user", "?"),))
    groups = [Group(user, tuple(rollout(name, k, (9,), (2,)) for k in range(3)), ("",) * 3) for name in "ab"]
    rows = [[Score(1.0, {"right": 1.0}), Score(0.0, {"right": 0.5}), Score(2.0)], [failed("broken")] * 3]
    found = describe(scored(groups, rows))
    assert (found["reward"], found["reward/right"], found["reward/failed"], found["zero_spread"]) == (1.0, 0.75, 0.5, 0.0)


def test_the_log_of_rollouts_forgets_what_will_be_written_again(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.jsonl")
    log.rewind(0)  # nothing there yet
    user = Conversation("x", (Message("user", "?"),))
    for step in range(4):
        log.append(step, [Group(user, (rollout(f"g{step}", 0, (9,), (5, 2)),), ("é",))])
    whole = log.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.rewind(4)
    assert log.path.read_bytes() == whole
    log.path.write_bytes(whole + b'{"step": 4, "te')
    log.rewind(4)
    assert log.path.read_bytes() == whole
    log.rewind(2)
    assert log.path.read_bytes() == b"".join(lines[:2])
    log.rewind(0)
    assert log.path.read_bytes() == b""


BAD = [
    ({"critic": None}, "needs the column value, and without a critic nothing makes it"),
    ({"sampling": {"top_p": 0.9}}, "the ratio is biased unless answers are drawn from the whole distribution"),
    ({"sampling": {"top_k": 50}}, "the ratio is biased unless answers are drawn from the whole distribution"),
    ({"sampling": {"min_p": 0.1}}, "the ratio is biased unless answers are drawn from the whole distribution"),
    ({"sampling": {"temperature": 0}}, "the ratio is biased unless answers are drawn from the whole distribution"),
]


@pytest.mark.parametrize(("change", "what"), BAD)
def test_a_recipe_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, tiny_folder: Path, change: dict[str, object], what: str) -> None:
    for name, rows in {"chat": chats(["a"]), "pairs": pairs("a", "b", 1), "prompts": prompts(1)}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    error = failure(tmp_path, tiny_folder, {**CHAIN, "ppo": {**PPO, **change}})
    assert isinstance(error, RecipeError)
    assert what in str(error)
    assert not (tmp_path / "run" / "stages").exists()
