"""The loop of a training stage: what it keeps, when it saves, how it stops, and that going on is exactly not having stopped."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from xwin.data.batch import Batch, Sample, pack
from xwin.errors import CheckpointError, Interrupted, TrainingStopped
from xwin.learning import checkpoint
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

TOTAL = 6
MakeLearner = Callable[..., Learner]


def batch(step: int) -> list[Batch]:
    """What step `step` learns from."""
    tokens = tuple(int(t) for t in generator(1, step).integers(3, 259, 24))
    return pack([Sample(str(step), tokens, (False,) * 8 + (True,) * 16)], tokens=64)


@dataclass
class Bench:
    """A stage's folder, and loops over it as one attempt after another would make them."""

    folder: Path
    make: MakeLearner
    stop: StopFlag = field(default_factory=StopFlag)

    def learner(self, seed: int = 0) -> Learner:
        return self.make(CrossEntropy(), seed=seed, optim=Optim(lr=1e-2), total=TOTAL)

    def loop(self, learner: Learner, **fields: Any) -> Loop:
        settings = {"guards": (), "every": 1e9, "state": {"rows": 0}} | fields
        self.folder.mkdir(exist_ok=True)
        directory, console = StageDirectory(self.folder, "sft"), Console(stream=io.StringIO())
        return Loop("sft", TOTAL, {"policy": learner}, directory, console, self.stop, **settings)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def events(self) -> list[tuple[int, str, float]]:
        """Without what depends on the clock."""
        return [(e.step, e.name, e.value) for e in EventLog(self.folder / "events.jsonl", "sft").read() if e.name not in TIMED]


@pytest.fixture
def bench(tmp_path: Path, make_learner: MakeLearner) -> Bench:
    return Bench(tmp_path / "stage", make_learner)


def train(learner: Learner, loop: Loop, until: int = TOTAL, scores: list[float] | None = None) -> None:
    """Steps up to step `until`, as if the process were killed then."""
    for step in loop:
        if step == until:
            return
        metrics = learner.step(batch(step))
        loop.state = {"rows": loop.state["rows"] + 10, **{k: v for k, v in loop.state.items() if k != "rows"}}
        loop.done(metrics, score=scores[step] if scores else None)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_going_on_is_exactly_not_having_stopped(bench: Bench, tmp_path: Path, killed_at: int) -> None:
    straight = Bench(tmp_path / "straight", bench.make)
    expected = straight.learner()
    train(expected, straight.loop(expected))
    first = bench.learner()
    train(first, bench.loop(first, every=0), until=killed_at)
    second = bench.learner(seed=9)
    loop = bench.loop(second)
    assert (loop.start, loop.state) == (killed_at, {"rows": 10 * killed_at})
    train(second, loop)
    assert second.steps_done == TOTAL
    assert equal(weights(second), weights(expected))
    assert bench.events() == straight.events()


def test_a_kill_between_checkpoints_takes_steps_back(bench: Bench) -> None:
    first = bench.learner()
    loop = bench.loop(first, every=0)
    for step in loop:
        loop.every = 0 if step < 2 else 1e9  # checkpoints after steps 0 and 1 alone
        if step == 4:
            break
        loop.done(first.step(batch(step)))
    assert max(step for step, *_ in bench.events()) == 3
    assert bench.loop(bench.learner()).start == 2
    assert max(step for step, *_ in bench.events()) == 1


def test_the_last_step_needs_no_checkpoint(bench: Bench) -> None:
    learner = bench.learner()
    train(learner, bench.loop(learner, every=0))
    found = checkpoint.latest(bench.checkpoints)
    assert found is not None
    assert found.name == f"step-{TOTAL - 1:06d}"


def test_a_signal_writes_a_checkpoint_and_then_stops(bench: Bench) -> None:
    learner = bench.learner()
    loop = bench.loop(learner)
    with pytest.raises(Interrupted) as caught:
        for step in loop:
            if step == 2:
                bench.stop.set(15)
            loop.done(learner.step(batch(step)))
    assert caught.value.exit_code == 143
    bench.stop = StopFlag()
    assert bench.loop(bench.learner()).start == 3


def test_a_signal_in_the_last_step_lets_the_stage_publish(bench: Bench) -> None:
    """There is nothing to go on with, and stopping would lose every step since the last checkpoint."""
    learner = bench.learner()
    loop = bench.loop(learner)
    for step in loop:
        if step == TOTAL - 1:
            bench.stop.set(15)
        loop.done(learner.step(batch(step)))
    assert learner.steps_done == TOTAL
    assert bench.stop.is_set


def test_the_best_parameters_come_back_at_the_end(bench: Bench) -> None:
    learner = bench.learner()
    loop = bench.loop(learner, every=0)
    kept: dict[str, torch.Tensor] = {}
    for step in loop:
        loop.done(learner.step(batch(step)), score=[3.0, 1.0, 2.0, 1.0, 5.0, 4.0][step])
        kept = weights(learner) if step == 1 else kept
    assert (loop.best.step, loop.best.value, loop.best.worse) == (1, 1.0, 4)
    assert not equal(weights(learner), kept)
    loop.restore_best()
    assert equal(weights(learner), kept)


def test_the_best_survives_a_kill(bench: Bench) -> None:
    first = bench.learner()
    scores = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    train(first, bench.loop(first, every=0), until=3, scores=scores)
    second = bench.learner()
    loop = bench.loop(second)
    assert (loop.best.step, loop.best.value, loop.best.worse) == (1, 1.0, 1)
    train(second, loop, scores=scores)
    loop.restore_best()
    third = Bench(bench.folder.with_name("other"), bench.make)
    expected = third.learner()
    train(expected, third.loop(expected), until=2)
    assert equal(weights(second), weights(expected))


def test_a_best_that_was_written_after_the_last_checkpoint_is_chosen_again(bench: Bench) -> None:
    """Killed after step 3 wrote best.safetensors and before any later checkpoint: the replay must not trust that file."""
    scores = [3.0, 2.0, 2.5, 1.0, 4.0, 4.0]
    first = bench.learner()
    loop = bench.loop(first, every=0)
    for step in loop:
        loop.every = 0 if step < 2 else 1e9
        loop.done(first.step(batch(step)), score=scores[step])
        if step == 3:
            break
    second = bench.learner()
    again = bench.loop(second)
    assert (again.start, again.best.step) == (2, 1)
    train(second, again, scores=scores)
    again.restore_best()
    straight = Bench(bench.folder.with_name("straight"), bench.make)
    expected = straight.learner()
    train(expected, straight.loop(expected), until=4)
    assert equal(weights(second), weights(expected))


def test_patience_ends_the_loop_and_a_resume_does_not_go_on(bench: Bench) -> None:
    learner = bench.learner()
    scores = [1.0, 2.0, 2.0, 2.0, 0.0, 0.0]
    train(learner, bench.loop(learner, every=0, patience=2), scores=scores)
    assert learner.steps_done == 3
    again = bench.learner()
    loop = bench.loop(again, patience=2)
    train(again, loop, scores=scores)
    assert (loop.start, again.steps_done) == (3, 3)
    loop.restore_best()
    assert loop.best.step == 0


def test_a_guard_that_stops_names_stage_and_step(bench: Bench) -> None:
    learner = bench.learner()
    loop = bench.loop(learner, guards=(Guard.model_validate({"metric": "loss", "above": 0.1, "for": 2}),))
    with pytest.raises(TrainingStopped, match=r"stages\.sft, step 1: loss is .* nats, above its guard of 0\.1 nats"):
        train(learner, loop)
    assert [(a.step, a.metric, a.action) for a in AlarmLog(bench.folder / "alarms.jsonl").read()] == [(1, "loss", "stop")]


def test_a_guard_that_warns_goes_on_and_its_count_survives_a_kill(bench: Bench) -> None:
    guard = Guard.model_validate({"metric": "loss", "above": 0.1, "for": 3, "do": "warn"})
    first = bench.learner()
    train(first, bench.loop(first, every=0, guards=(guard,)), until=2)
    assert AlarmLog(bench.folder / "alarms.jsonl").read() == []
    second = bench.learner()
    train(second, bench.loop(second, guards=(guard,)))
    assert [a.step for a in AlarmLog(bench.folder / "alarms.jsonl").read()] == [2]


def spoil(path: Path, how: str) -> None:
    """Half a file, one changed byte, or no file."""
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    {"cut": lambda: path.write_bytes(content[:100]), "altered": lambda: path.write_bytes(content), "missing": path.unlink}[how]()


@pytest.mark.parametrize("how", ["cut", "altered", "missing"])
def test_a_best_that_is_not_what_was_written_is_one_clear_error(bench: Bench, how: str) -> None:
    learner = bench.learner()
    loop = bench.loop(learner)
    train(learner, loop, scores=[1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    spoil(bench.checkpoints / "best-000000.safetensors", how)
    with pytest.raises(CheckpointError, match=r"best-000000\.safetensors: the best parameters are missing, cut short or altered") as caught:
        loop.restore_best()
    assert str(bench.folder) in caught.value.fix


def test_only_the_best_that_a_checkpoint_may_need_is_kept(bench: Bench) -> None:
    learner = bench.learner()
    loop = bench.loop(learner, every=0)
    for step in loop:
        loop.every = 0 if step in {1, 3} else 1e9
        loop.done(learner.step(batch(step)), score=float(-step))
        kept = sorted(path.name for path in bench.checkpoints.glob("best*"))
        wanted = {0: [0], 1: [1], 2: [1, 2], 3: [3], 4: [3, 4], 5: [3, 4, 5]}[step]
        assert kept == [f"best-{i:06d}.safetensors" for i in wanted]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_equal_steps_are_equal_to_the_last_bit_on_two_threads(make_learner: MakeLearner) -> None:
    """Rows that share a prompt read its keys many times: gradients of one number are summed by several threads, in one order."""
    draw = generator(0, "rows")
    prompt = tuple(int(t) for t in draw.integers(3, 259, 120))
    rows = [tuple(int(t) for t in draw.integers(3, 259, 40)) for _ in range(24)]
    samples = [Sample(f"{i}", prompt + row, (False,) * 120 + (True,) * 40) for i, row in enumerate(rows)]
    batches = pack(samples, tokens=8192, share=True)

    def gradient() -> torch.Tensor:
        learner = make_learner(CrossEntropy())
        learner._backward(CrossEntropy(), batches)
        return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])

    first = gradient()
    assert float(first.norm()) > 0
    assert all(torch.equal(gradient(), first) for _ in range(4))
