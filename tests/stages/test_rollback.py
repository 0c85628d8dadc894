"""Rolling back in real runs: a row that gives NaN, a corrupt row, a learning rate that explodes, a scorer that goes wild."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xwin.data.batch import Batch, Sample, pack
from xwin.errors import TrainingStopped
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.objectives.sft import Sft as CrossEntropy
from xwin.run.console import Console
from xwin.run.directory import StageDirectory
from xwin.run.events import TIMED
from xwin.run.guards import Guard
from xwin.run.log import AlarmLog, EventLog
from xwin.run.signals import StopFlag
from xwin.seeds import generator
from xwin.stages._loop import Loop

from . import rewards
from .small import Done, carry_out, chats, failure, pairs, prompts, read, write

MakeLearner = Callable[..., Learner]

ROWS = 40
CULPRIT = 23
"""The row with which something is wrong."""
SPIKE = {"metric": "loss", "spike": 10, "window": 5, "do": "rollback"}
SFT = {
    "kind": "sft",
    "init": "base",
    "data": "./chat.jsonl",
    "validation": "./held.jsonl",
    "patience": None,
    "epochs": 4,
    "max_rollbacks": 4,
    "optim": {"lr": 1e-2},
    "objective": {"label_smoothing": 0.1},
    "tokens_per_step": 1024,
    "guards": [SPIKE],
}


ANSWER = "yes yes"
"""Learned soon; with smoothed labels the loss then stays where it is, well above zero, so that two percent of it mean something."""


def sft(folder: Path, model: Path, *sets: str, weight: float = 1.0, text: str | None = None) -> Done:
    """A run on rows of which one has this weight, and this text."""
    folder.mkdir(exist_ok=True)
    _data(folder, weight, text)
    return carry_out(folder, model, {"sft": SFT}, *sets)


def _data(folder: Path, weight: float, text: str | None) -> None:
    rows = chats([ANSWER] * ROWS)
    answer = rows[CULPRIT]["messages"][1]
    answer |= {"weight": weight, "content": text or answer["content"]}
    write(folder / "chat.jsonl", rows)
    write(folder / "held.jsonl", chats([ANSWER] * 8))


def skipped(done: Done, stage: str = "sft") -> dict[int, list[str]]:
    """Step -> names of what it would have learned from."""
    return {row["step"]: row["samples"] for row in read(done.stage(stage) / "events.jsonl") if row["name"] == "skipped"}


def finite(run: Path) -> int:
    """How many numbers of models are in a run; all of them finite, and every line of JSON is JSON."""
    count = 0
    for path in (run / "stages").rglob("*.safetensors"):
        for tensor in load_file(path).values():
            assert bool(tensor.isfinite().all()), path
            count += tensor.numel()
    for path in [*(run / "stages").rglob("*.jsonl"), *(run / "stages").rglob("*.json")]:
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=lambda name, path=path: pytest.fail(f"{path}: {name}"))
    return count


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    return sft(tmp_path_factory.mktemp("clean") / "x", tiny_folder)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    """The sum of a step's weights overflows: the loss is infinity / infinity."""
    return sft(tmp_path_factory.mktemp("poisoned") / "x", tiny_folder, weight=3e38)


def same_in_the_end(done: Done, clean: Done) -> bool:
    """Within two percent of the loss on what is held out."""
    return done.metrics("sft")["validation_loss"] == pytest.approx(clean.metrics("sft")["validation_loss"], rel=0.02)


def test_a_clean_run_never_rolls_back(clean: Done) -> None:
    assert skipped(clean) == {}
    assert not (clean.stage("sft") / "alarms.jsonl").exists()
    assert "rollbacks" not in clean.metrics("sft")


def test_a_batch_that_is_not_a_number_is_passed_over_and_the_run_ends_as_a_clean_one(poisoned: Done, clean: Done) -> None:
    assert same_in_the_end(poisoned, clean)
    passed = skipped(poisoned)
    assert len(passed) == 4, "once in each epoch"
    assert all(f"q{CULPRIT}" in samples for samples in passed.values())
    assert poisoned.metrics("sft")["rollbacks"] == 4
    losses = poisoned.curve("sft", "loss")
    assert sorted([*losses, *passed]) == sorted(clean.curve("sft", "loss")), "every other step was taken once"
    assert {step: loss for step, loss in losses.items() if step < min(passed)} == {
        step: loss for step, loss in clean.curve("sft", "loss").items() if step < min(passed)
    }
    assert finite(poisoned.path) > 10_000


def test_alarms_name_the_row_and_stay(poisoned: Done) -> None:
    alarms = AlarmLog(poisoned.stage("sft") / "alarms.jsonl").read()
    assert [(alarm.step, alarm.action, alarm.why) for alarm in alarms] == [(step, "rollback", f"samples q{CULPRIT}") for step in skipped(poisoned)]
    assert f"not a finite number (samples q{CULPRIT}); rolled back to step" in poisoned.said


def test_the_report_shows_what_was_passed_over(poisoned: Done, clean: Done) -> None:
    page = (poisoned.path / "report.html").read_text()
    assert page.count("<td>rolled back</td>") == 4
    section = page[page.index("Steps passed over") :]
    for step, samples in skipped(poisoned).items():
        assert f'<td class="number">{step}</td><td class="number">{len(samples)}</td><td>{", ".join(samples)}</td>' in section
    assert "Steps passed over" not in (clean.path / "report.html").read_text()


def test_without_a_guard_that_rolls_back_the_stage_stops_and_names_the_row(tmp_path: Path, tiny_folder: Path) -> None:
    _data(tmp_path, 3e38, None)
    error = failure(tmp_path, tiny_folder, {"sft": {**SFT, "guards": []}})
    assert isinstance(error, TrainingStopped)
    assert error.where.endswith(f"samples q{CULPRIT}")
    assert "do: rollback" in error.fix
    (alarm,) = AlarmLog(tmp_path / "run" / "stages" / "sft" / "alarms.jsonl").read()
    assert (alarm.metric, alarm.action, alarm.why) == ("loss", "stop", f"samples q{CULPRIT}")


def test_it_gives_up_after_as_many_rollbacks_as_are_allowed(tmp_path: Path, tiny_folder: Path) -> None:
    _data(tmp_path, 3e38, None)
    error = failure(tmp_path, tiny_folder, {"sft": SFT}, "sft.max_rollbacks=1")
    assert isinstance(error, TrainingStopped)
    assert f"(samples q{CULPRIT}); gave up after 1 rollbacks" in error.what
    again = failure(tmp_path, tiny_folder, {"sft": SFT}, "sft.max_rollbacks=1")
    assert str(again) == str(error), "and says the same when it is run again"


def test_a_corrupt_sample_is_found_by_its_spike(tmp_path: Path, tiny_folder: Path, clean: Done) -> None:
    """Garbage that counts five hundred times. In the first epoch the loss falls so steeply that no value is a spike; later it is seen each time."""
    done = sft(tmp_path / "x", tiny_folder, weight=500.0, text="\x07Q\x7f~|`Z\x02")
    passed = skipped(done)
    assert len(passed) == 3
    assert all(f"q{CULPRIT}" in samples for samples in passed.values())
    assert same_in_the_end(done, clean)
    assert "10 deviations over the 5 values before" in (done.path / "report.html").read_text()


def test_a_stage_of_which_no_step_would_be_left_stops(tmp_path: Path, tiny_folder: Path) -> None:
    _data(tmp_path, 3e38, None)
    error = failure(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 1}}, "sft.tokens_per_step=100000", "sft.tokens_per_batch=100000")
    assert "gave up after 0 rollbacks" in str(error)


TOTAL = 30


def exploding(learner: Learner, loop: Loop, steps: range) -> None:
    """Trains on one text, whose letters come by chance; in `steps` the learning rate is a thousand times what it should be."""
    calm = learner.optim
    wild = calm.model_copy(update={"lr": 5.0})  # a recipe may not ask for this much
    for step in loop:
        if loop.skips([f"batch {step}"]):
            continue
        learner.optim = wild if step in steps else calm
        with loop.trial():
            loop.done(learner.step(batch(step)))


def batch(step: int) -> list[Batch]:
    """Sixty-four letters, a or b by chance."""
    tokens = tuple(100 + int(t) for t in generator(1, step).integers(0, 2, 64))
    return pack([Sample(str(step), (1, *tokens), (False, *(True,) * 64))], tokens=128)


@pytest.fixture
def explode(tmp_path: Path, make_learner: MakeLearner) -> Callable[[range], tuple[Learner, Path]]:
    """A run in a folder of its own, with three steps that explode."""

    def run(steps: range) -> tuple[Learner, Path]:
        folder = tmp_path / f"{steps}"
        folder.mkdir()
        learner = make_learner(CrossEntropy(), optim=Optim(lr=5e-3, schedule="constant", warmup=0), total=TOTAL)
        directory, console = StageDirectory(folder, "sft"), Console(stream=io.StringIO())
        guards = [Guard.model_validate(SPIKE)]
        loop = Loop("sft", TOTAL, {"policy": learner}, directory, console, StopFlag(), guards, 1e9, {}, max_rollbacks=3)
        exploding(learner, loop, steps)
        return learner, folder

    return run


def test_a_learning_rate_that_explodes_for_three_steps_does_no_harm(explode: Callable[[range], tuple[Learner, Path]]) -> None:
    """The update of step 15 does the harm, the loss of step 16 shows it: the stretch grows until it holds all three."""
    calm, _ = explode(range(0))
    learner, folder = explode(range(15, 18))
    held = [b for step in range(100, 108) for b in batch(step)]
    assert learner.evaluate(held)["loss"].value == pytest.approx(calm.evaluate(held)["loss"].value, rel=0.02)
    events = EventLog(folder / "events.jsonl", "sft").read()
    assert [(e.step, e.samples) for e in events if e.name == "skipped"] == [(step, (f"batch {step}",)) for step in (15, 16, 17)]
    assert [alarm.step for alarm in AlarmLog(folder / "alarms.jsonl").read()] == [16, 17]
    assert learner.steps_done == TOTAL - 3


@dataclass
class Spoiled:
    """A stage of which steps 4, 5 and 9 give NaN, as one attempt after another would make it."""

    folder: Path
    make: MakeLearner

    def attempt(self, every: Callable[[int], float], iterations: int = 1000) -> Learner:
        """Goes on where the last attempt was. `every`: step -> seconds between checkpoints; it is killed after so many iterations."""
        self.folder.mkdir(exist_ok=True)
        learner = self.make(CrossEntropy(), optim=Optim(lr=5e-3, schedule="constant", warmup=0), total=12)
        directory, console = StageDirectory(self.folder, "sft"), Console(stream=io.StringIO())
        guards = [Guard.model_validate(SPIKE)]
        loop = Loop("sft", 12, {"policy": learner}, directory, console, StopFlag(), guards, 1e9, {}, max_rollbacks=3)
        for count, step in enumerate(loop):
            if count == iterations:
                break
            loop.every = every(step)
            if loop.skips([f"batch {step}"]):
                continue
            with loop.trial():
                loop.done(learner.step(spoiled(step)), score=SCORES[step])
        else:
            loop.restore_best()
        return learner

    def left(self) -> list[tuple[int, str, object]]:
        """Events and alarms, without what depends on the clock."""
        events = EventLog(self.folder / "events.jsonl", "sft").read()
        alarms = AlarmLog(self.folder / "alarms.jsonl").read()
        return [*((e.step, e.name, (e.value, e.samples)) for e in events if e.name not in TIMED), *((a.step, "alarm", str(a)) for a in alarms)]


SCORES = [9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 5.0, 4.0, 4.5, 0.0, 4.4, 4.3]
"""Of validation: the best step is 7. A step that is passed over must not become the best."""


def spoiled(step: int) -> list[Batch]:
    """Sixteen letters; their weights overflow at three of the steps."""
    tokens = tuple(100 + int(t) for t in generator(1, step).integers(0, 2, 16))
    weight = 3e38 if step in {4, 5, 9} else 1.0
    return pack([Sample(str(step), (1, *tokens), (False, *(True,) * 16), {"weight": (0.0, *(weight,) * 16)})], tokens=128)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


RHYTHMS: dict[str, Callable[[int], float]] = {
    "at every step": lambda step: 0,
    "never": lambda step: 1e9,
    "now and then": lambda step: 0 if step % 3 == 1 else 1e9,
}


def test_the_result_does_not_depend_on_when_checkpoints_were_written(tmp_path: Path, make_learner: MakeLearner) -> None:
    """All three are bit for bit the run that knew from the start what to leave out.

    That is step 4, then, because step 5 was not better, both and the step before them; and step 9.
    """
    found = {}
    for name, every in RHYTHMS.items():
        stage = Spoiled(tmp_path / name, make_learner)
        found[name] = (weights(stage.attempt(every)), stage.left())
    first, left = found["never"]
    assert all(equal(first, others) and left == events for others, events in found.values())
    plain = make_learner(CrossEntropy(), optim=Optim(lr=5e-3, schedule="constant", warmup=0), total=12)
    for step in (0, 1, 2, 6, 7):
        plain.step(spoiled(step))
    assert equal(weights(plain), first)
    assert [step for step, name, _ in left if name == "alarm"] == [4, 5, 9]
    assert [step for step, name, _ in left if name == "skipped"] == [3, 4, 5, 9]


@pytest.mark.parametrize("rhythm", ["at every step", "now and then"])
def test_a_run_that_rolled_back_and_was_killed_ends_as_one_that_was_not(rhythm: str, tmp_path: Path, make_learner: MakeLearner) -> None:
    whole = Spoiled(tmp_path / "whole", make_learner)
    expected = weights(whole.attempt(RHYTHMS[rhythm]))
    for iterations in range(1, 21, 3):
        stage = Spoiled(tmp_path / f"{iterations}", make_learner)
        stage.attempt(RHYTHMS[rhythm], iterations)
        stage.attempt(RHYTHMS[rhythm], iterations=2)
        assert equal(weights(stage.attempt(RHYTHMS[rhythm])), expected), iterations
        assert stage.left() == whole.left(), iterations


def test_a_margin_that_is_not_a_number_is_passed_over_by_a_reward_model(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [row | {"margin": 0.1} for row in pairs("good.", "bad bad.", 24)]
    rows[5]["margin"] = 3e38  # times ten it is infinite in fp32
    write(tmp_path / "pairs.jsonl", rows)
    never = {**SPIKE, "spike": 1e6}
    rm = {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 2, "optim": {"lr": 1e-3}, "tokens_per_step": 1024}
    done = carry_out(tmp_path, tiny_folder, {"rm": {**rm, "objective": {"kind": "bradley_terry", "margin_scale": 10.0}, "guards": [never]}})
    passed = skipped(done, "rm")
    assert passed
    assert all("5:q5" in samples for samples in passed.values())
    assert done.metrics("rm")["accuracy"] == 1.0
    assert finite(done.path) > 10_000


RL = {
    "kind": "rl",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "credit": {"kind": "group", "scale": "none"},
    "objective": "grpo",
    "optim": {"lr": 1e-3},
    "steps": 5,
    "prompts_per_step": 3,
    "n": 2,
    "sampling": {"max_tokens": 5},
    "guards": [SPIKE],
}


def test_a_scorer_that_goes_wild_costs_one_round(tmp_path: Path, tiny_folder: Path) -> None:
    """One answer is worth 1e30: its gradient is not finite. The round's prompts are used up, its answers are not in the log."""
    write(tmp_path / "prompts.jsonl", prompts(40))
    done = carry_out(tmp_path, tiny_folder, {"ppo": {**RL, "scorer": {"kind": "function", "function": f"{rewards.__name__}:wild_at_7"}}})
    assert {step: [name.partition("@")[2] for name in names] for step, names in skipped(done, "ppo").items()} == {2: ["6", "7", "8"]}
    log = read(done.stage("ppo") / "rollouts.jsonl")
    places = {step: sorted({row["prompt_id"].partition("@")[2] for row in log if row["step"] == step}, key=int) for step in range(5)}
    assert places == {0: ["0", "1", "2"], 1: ["3", "4", "5"], 2: [], 3: ["9", "10", "11"], 4: ["12", "13", "14"]}
    assert max(abs(row["score"]["value"]) for row in log) <= 1
    assert done.metrics("ppo")["rollbacks"] == 1
    assert finite(done.path) > 10_000


def test_weights_that_are_not_finite_reach_neither_checkpoint_nor_model(tmp_path: Path, make_learner: MakeLearner) -> None:
    from xwin.learning import checkpoint

    learner = make_learner(CrossEntropy(), total=3)
    checkpoint.save(tmp_path, 1, {"policy": learner.state()}, {})
    with torch.no_grad():
        next(learner.model.parameters()).view(-1)[7] = math.inf
    with pytest.raises(TrainingStopped, match=r"holds a number that is not finite"):
        checkpoint.save(tmp_path, 2, {"policy": learner.state()}, {})
    assert checkpoint.steps(tmp_path) == [1]
    with pytest.raises(TrainingStopped, match=r"model\.safetensors: 'model\.\S+' holds a number that is not finite"):
        learner.publish(tmp_path / "final")
    assert list((tmp_path / "final").glob("*.safetensors")) == []
