"""What is wrong with the first step is said before it is taken."""

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from xwin.credit.base import to_sample
from xwin.data.batch import Batch, Sample, pack
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout
from xwin.data.template import LaidOut, Template, samples
from xwin.errors import TrainingStopped
from xwin.learning.learner import Learner
from xwin.objectives.sft import Sft
from xwin.objectives.value import Value
from xwin.run.events import Max
from xwin.stages import _start
from xwin.stages._start import require_ratio, require_sound, require_sound_round, require_start

from .small import carry_out, chats, failure, pairs, prompts, write


def rows(template: Template) -> list[Sample]:
    """Two chats that begin with different system messages, one of two exchanges."""
    hi, hello = Message("user", "Hi!"), Message("assistant", "Hello.")
    short, long = (Message("system", "Be short."), hi, hello), (Message("system", "Tell me more."), hi, hello, hi, hello)
    return list(samples(template, [Conversation("a", short), Conversation("b", long)]))


@pytest.fixture
def learner(make_learner: Callable[..., Learner]) -> Learner:
    return make_learner(Sft())


def check(learner: Learner, found: list[Sample], template: Template, *, cut: bool = False) -> None:
    require_sound(learner, found, pack(found, tokens=4096, share=True), template, cut=cut)


def test_a_sound_step_passes(learner: Learner, tiny_template: Template, own_template: Template) -> None:
    check(learner, rows(tiny_template), tiny_template)
    check(learner, rows(own_template), own_template)


def test_an_answer_that_does_not_end_is_named(learner: Learner, tiny_template: Template) -> None:
    good, bad = rows(tiny_template)
    first_end = bad.mask.index(False, bad.mask.index(True)) - 1
    for place in (first_end, len(bad.tokens) - 1):
        broken = replace(bad, tokens=(*bad.tokens[:place], 99, *bad.tokens[place + 1 :]))
        with pytest.raises(TrainingStopped, match=rf"sample b, token {place}: .*never learn to stop"):
            check(learner, [good, broken], tiny_template)


def test_only_the_end_of_a_row_may_be_cut(learner: Learner, tiny_template: Template) -> None:
    good, whole = rows(tiny_template)
    short = replace(whole, tokens=whole.tokens[:-2], mask=whole.mask[:-2], columns={"weight": whole.columns["weight"][:-2]})  # type: ignore[index]
    check(learner, [good, short], tiny_template, cut=True)
    with pytest.raises(TrainingStopped, match="never learn to stop"):
        check(learner, [good, short], tiny_template)


def test_a_row_that_trains_nothing_is_named(learner: Learner, tiny_template: Template) -> None:
    good, other = rows(tiny_template)
    with pytest.raises(TrainingStopped, match="sample b: nothing of it"):
        check(learner, [good, replace(other, mask=(False,) * len(other.mask))], tiny_template)


def test_two_beginnings_are_one_too_many(learner: Learner, tiny_template: Template) -> None:
    good, other = rows(tiny_template)
    bos = tiny_template.bos
    assert bos is not None
    twice = replace(other, tokens=(bos, bos, *other.tokens), mask=(False, False, *other.mask), columns={})
    with pytest.raises(TrainingStopped, match="two beginning-of-sequence"):
        check(learner, [replace(good, columns={}), twice], tiny_template)


def test_a_model_that_looks_across_samples_is_found_out(learner: Learner, tiny_template: Template) -> None:
    """The batch claims that the second chat continues the first, as a mask that lets everything through would have it."""
    found = rows(tiny_template)
    (batch,) = pack(found, tokens=4096)
    leaking: Batch = replace(batch, parent=batch.parent.index_fill(0, batch.parent.new_tensor([1]), 0))
    with pytest.raises(TrainingStopped, match="in a pack than alone"):
        require_sound(learner, [s for s in found if s.id == batch.ids[1]], [leaking], tiny_template, cut=False)


def test_a_known_first_loss_is_compared() -> None:
    require_start(0.6931, math.log(2))
    with pytest.raises(TrainingStopped, match=r"is 4\.1589, .* must be 0\.6931"):
        require_start(6 * math.log(2), math.log(2))


def round_of(template: Template, finish: Finish = "stop") -> tuple[Group, list[Sample]]:
    """Two answers to one prompt, the second cut or ended as said."""
    prompt, stop = template.prompt([Message("user", "Hi!")]), template.stop[0]
    rollouts = tuple(Rollout("q", k, 0, prompt, (70 + k, 80, stop)[: 3 - k], (-1.0,) * (3 - k), ("stop", finish)[k]) for k in range(2))
    return Group(Conversation("q", (Message("user", "Hi!"),)), rollouts, ("", "")), [to_sample(r, {}) for r in rollouts]


def lay_out(found: list[Sample]) -> list[Batch]:
    return pack(found, tokens=4096, share=True)


def test_a_round_of_answers_passes_for_policy_and_critic(make_learner: Callable[..., Learner], learner: Learner, tiny_template: Template) -> None:
    critic = make_learner(Value(), head="value")
    require_sound_round([learner, critic], [round_of(tiny_template, "length")], lay_out, tiny_template)


def test_an_answer_that_stopped_without_an_end_is_named(learner: Learner, tiny_template: Template) -> None:
    with pytest.raises(TrainingStopped, match="sample q/1, token .*never learn to stop"):
        require_sound_round([learner], [round_of(tiny_template, "stop")], lay_out, tiny_template)


def test_a_critic_that_looks_across_answers_is_found_out(make_learner: Callable[..., Learner], learner: Learner, tiny_template: Template) -> None:
    def leaking(found: list[Sample]) -> list[Batch]:
        """Each answer continues the one before it."""
        (batch,) = pack(found, tokens=4096)
        return [replace(batch, parent=batch.parent.new_tensor([-1, 0]))]

    for who in (learner, make_learner(Value(), head="value")):
        with pytest.raises(TrainingStopped, match="in a pack than alone"):
            require_sound_round([who], [round_of(tiny_template, "length")], leaking, tiny_template)


def test_a_ratio_that_does_not_start_at_1_stops_the_training() -> None:
    require_ratio({}, torch.float32)
    require_ratio({"ratio_gap": Max(9e-6)}, torch.float32)
    require_ratio({"ratio_gap": Max(0.0)}, torch.bfloat16)
    for gap, dtype in ((2e-5, torch.float32), (1e-7, torch.bfloat16), (math.nan, torch.float32)):
        with pytest.raises(TrainingStopped, match="before anything was learned"):
            require_ratio({"ratio_gap": Max(gap)}, dtype)


ROWS = {"init": "base", "tokens_per_step": 1024}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "data": "./chats.jsonl", **ROWS},
    "reward_model": {"kind": "reward_model", "data": "./pairs.jsonl", **ROWS},
    "preference": {"kind": "preference", "data": "./pairs.jsonl", **ROWS},
    "rl": {
        "kind": "rl",
        "init": "base",
        "prompts": "./prompts.jsonl",
        "scorer": {"kind": "length", "shape": {"kind": "linear"}},
        "critic": {"init": "base"},
        "steps": 1,
        "prompts_per_step": 2,
        "sampling": {"max_tokens": 4},
    },
}
CHECKS: list[tuple[str, str, str, Any, str]] = [
    *((kind, "_start.ALONE", "in a pack than alone", dict.fromkeys(_start.ALONE, -1.0), "sample") for kind in STAGES),
    *((kind, "LaidOut.stop", "never learn to stop", property(lambda _: (99,)), "sample") for kind in ("sft", "reward_model", "preference")),
    ("reward_model", "reward_model.UNTRAINED_TOLERANCE", "it must be 0.6931", -1.0, "step 0"),
    ("rl", "_start.RATIO", "before anything was learned", dict.fromkeys(_start.RATIO, -1.0), "step 0"),
]
"""Stage, what is made so strict that nothing passes, and what is said then. A reference that is another model is in test_preference.py."""


@pytest.mark.parametrize(("kind", "strict", "what", "bound", "where"), CHECKS, ids=[f"{kind}-{strict}" for kind, strict, *_ in CHECKS])
def test_every_stage_looks_before_it_trains(  # noqa: PLR0917
    kind: str, strict: str, what: str, bound: Any, where: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in {"chats": chats(["yes"] * 4), "pairs": pairs("good.", "bad.", 4), "prompts": prompts(4)}.items():
        write(tmp_path / f"{name}.jsonl", found)
    place, _, attribute = strict.partition(".")
    monkeypatch.setattr(LaidOut if place == "LaidOut" else importlib.import_module(f"xwin.stages.{place}"), attribute, bound)
    error = failure(tmp_path, tiny_folder, {kind: STAGES[kind]})
    assert isinstance(error, TrainingStopped), error
    assert what in error.what
    assert where in error.where
    assert not (tmp_path / "run" / "stages" / kind / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("tune", [{"kind": "full"}, {"kind": "lora"}], ids=["full", "lora"])
def test_the_ratio_of_a_first_round_is_exactly_1_in_bf16(tune: dict[str, Any], tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(8))
    done = carry_out(tmp_path, tiny_folder, {"rl": {**STAGES["rl"], "tune": tune, "prompts_per_step": 4}}, "models.base.dtype=bfloat16")
    assert done.curve("rl", "ratio_gap") == {0: 0.0}
    assert done.curve("rl", "kl")[0] == pytest.approx(0.0, abs=1e-6)
