"""Killed at any moment and started again, a run ends as one that nothing disturbed: the same bytes, the same events but for the clock."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from xwin.seeds import generator

from .chain import STAGES, TRAINED, content, difference
from .forks import Forks

SEED = 20260801
"""Of which step of a stage each kill waits for, and which file operations crashes come before."""

DRAW = generator(SEED, "kills")


@dataclass(frozen=True)
class Look:
    """What a watcher sees of a run."""

    run: Path

    def stage(self, name: str) -> Path:
        return self.run / "stages" / name

    def status(self, name: str) -> str:
        path = self.stage(name) / "manifest.json"
        return json.loads(path.read_text())["status"] if path.exists() else "waiting"

    def lines(self, name: str, file: str = "rollouts.jsonl") -> list[bytes]:
        """Whole lines."""
        path = self.stage(name) / file
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    def step(self, name: str) -> int:
        """The last one that has events, -1 before the first."""
        return max((json.loads(line)["step"] for line in self.lines(name, "events.jsonl")), default=-1)

    def rolled(self, name: str) -> int:
        """The last round of answers in the log, -1 before the first."""
        return max((json.loads(line)["step"] for line in self.lines(name)), default=-1)

    def skipped(self, name: str) -> bool:
        return any(b'"skipped"' in line for line in self.lines(name, "events.jsonl"))

    def draft(self, name: str, pattern: str) -> bool:
        return any((self.stage(name) / "checkpoints").glob(pattern))


@dataclass(frozen=True)
class Moment:
    """A moment to kill at: seen while the run works, and proved by what lies on the disk afterwards."""

    name: str
    seen: Callable[[Look], bool]


def at_step(stage: str, step: int) -> Moment:
    return Moment(f"{stage} after step {step}", lambda look: look.step(stage) >= step and look.status(stage) == "running")


def in_checkpoint(stage: str, step: int) -> Moment:
    """A checkpoint is half-written, or whole without its name."""
    return Moment(f"{stage} while a checkpoint is written", lambda look: look.draft(stage, "step-*.tmp") and look.step(stage) >= step)


def in_publication(stage: str) -> Moment:
    """The model's folder is there, whole or not, and the manifest does not know it."""

    def seen(look: Look) -> bool:
        return any((look.stage(stage) / name).exists() for name in (".final.tmp", "final")) and look.status(stage) == "running"

    return Moment(f"{stage} while its model is published", seen)


def between_rollout_and_update(stage: str, step: int) -> Moment:
    return Moment(f"{stage} between answers and update", lambda look: look.rolled(stage) >= step and look.rolled(stage) > look.step(stage))


def in_generation(stage: str, least: int, most: int) -> Moment:
    """Some blocks of answers are on the disk and some are not."""
    return Moment(f"{stage} with {least} answers", lambda look: least <= len(look.lines(stage)) < most and look.status(stage) == "running")


def after_rollback(stage: str) -> Moment:
    """The stage has turned back and passed over what was to blame."""
    return Moment(f"{stage} after a rollback", lambda look: look.status(stage) == "running" and look.skipped(stage))


MOMENTS = (
    at_step("sft", int(DRAW.integers(2, 6))),
    in_checkpoint("sft", int(DRAW.integers(7, 10))),
    in_publication("sft"),
    in_checkpoint("taste", 0),
    at_step("taste", 1),
    in_publication("taste"),
    Moment("pairs before its first answers", lambda look: look.status("pairs") == "running" and not look.lines("pairs")),
    in_generation("pairs", 256, 384),
    in_checkpoint("dpo", 0),
    at_step("dpo", int(DRAW.integers(1, 4))),
    in_publication("dpo"),
    in_checkpoint("rm", 0),
    Moment("between best and sft2", lambda look: look.status("best") == "published" and look.step("sft2") < 0),
    in_publication("sft2"),
    between_rollout_and_update("ppo", 0),
    between_rollout_and_update("ppo", int(DRAW.integers(2, 4))),
    in_checkpoint("ppo", 3),
    in_publication("ppo"),
    in_checkpoint("spoiled", 1),
    after_rollback("spoiled"),
    after_rollback("wild"),
    in_publication("wild"),
    Moment("report half-way", lambda look: bool(look.lines("report", "rollouts-sft.jsonl")) and look.status("report") == "running"),
)
"""In order of the stages, as a run comes by them."""

QUICK = ("sft after", "taste while a checkpoint", "pairs with", "between best and sft2", "sft2 while", "ppo between", "spoiled after a rollback")
"""How the names of those begin that are in the quick suite: one of each sort."""

PLACES = {
    "stages/sft/checkpoints": 20,
    "stages/taste/events.jsonl": 2,
    "stages/pairs/rollouts.jsonl": 2,
    "stages/pairs/preferences.jsonl": 1,
    "stages/dpo/checkpoints/reference": 1,
    "stages/dpo/checkpoints/step": 2,
    "stages/rm/checkpoints/step": 2,
    "stages/rm/.final.tmp": 2,
    "stages/best/rollouts.jsonl": 1,
    "stages/best/.manifest": 2,
    "stages/sft2/.final.tmp": 2,
    "stages/ppo/checkpoints/best": 1,
    "stages/ppo/rollouts.jsonl": 2,
    "stages/ppo/checkpoints": 2,
    "stages/ppo/final": 1,
    "stages/spoiled/checkpoints/step-000000": 2,
    "stages/spoiled/events.jsonl": 2,
    "stages/spoiled/checkpoints": 2,
    "stages/wild/checkpoints/step-000001": 2,
    "stages/wild/rollouts.jsonl": 2,
    "stages/report/rollouts": 2,
    "stages/report/samples.jsonl": 1,
}
"""Where the operations on files lie that a crash comes before -> the latest that is drawn. The names that begin so belong to it."""


def killed(forks: Forks, recipe: Path, run: Path, moments: Sequence[Moment]) -> list[str]:
    """Runs the recipe to its end with a kill at each moment; the names of those that were hit.

    Each kill is proved: after it, the disk still shows the moment it was meant for.
    """
    look, hit = Look(run), []
    for moment in moments:
        for _ in range(3):  # between seeing and killing the moment may pass; most come again
            attempt = forks.start("run", recipe, "--dir", run)
            attempt.until(lambda moment=moment: moment.seen(look))
            attempt.send(signal.SIGKILL)
            assert attempt.wait() in {0, -signal.SIGKILL}, attempt.said
            if moment.seen(look):
                hit.append(moment.name)
                break
    last = forks.run("run", recipe, "--dir", run)
    assert last.status == 0, last.said
    return hit


def test_kills_at_chosen_moments_change_nothing(forks: Forks, recipe: Path, reference: Path) -> None:
    moments = [moment for moment in MOMENTS if moment.name.startswith(QUICK)]
    hit = killed(forks, recipe, recipe.parent / "killed", moments)
    assert difference(content(reference), content(recipe.parent / "killed")) == []
    assert len(hit) >= 6, f"the kills came too late for {[m.name for m in moments if m.name not in hit]}"


@pytest.mark.slow
def test_two_undisturbed_runs_are_equal_to_the_last_byte(forks: Forks, recipe: Path, reference: Path) -> None:
    second = forks.run("run", recipe, "--dir", recipe.parent / "second")
    assert second.status == 0, second.said
    assert difference(content(reference), content(recipe.parent / "second")) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_at_more_moments_change_nothing(forks: Forks, recipe: Path, reference: Path) -> None:
    hit = killed(forks, recipe, recipe.parent / "killed more", MOMENTS)
    assert difference(content(reference), content(recipe.parent / "killed more")) == []
    assert len(hit) >= 20, f"the kills came too late for {[m.name for m in MOMENTS if m.name not in hit]}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_crashes_before_chosen_file_operations_change_nothing(forks: Forks, recipe: Path, reference: Path) -> None:
    """Each attempt dies right before an operation that is drawn at random, in the order of the stages."""
    run, crashes, draw = recipe.parent / "crashed", 0, generator(SEED, "places")
    for place, most in PLACES.items():
        attempt = forks.run("run", recipe, "--dir", run, crash_at=int(draw.integers(1, most + 1)), crash_in=place)
        assert attempt.status in {0, -signal.SIGKILL}, attempt.said
        crashes += attempt.status != 0
    last = forks.run("run", recipe, "--dir", run)
    assert last.status == 0, last.said
    assert difference(content(reference), content(run)) == []
    assert crashes >= 9, f"{crashes} of {len(PLACES)} places were come by"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_crashes_between_any_two_file_operations_change_nothing(forks: Forks, recipe: Path, reference: Path) -> None:
    """Each attempt dies before one of its first operations on the run's files, drawn at random; more than 1,000 make a whole run."""
    run, crashes, draw = recipe.parent / "crashed anywhere", 0, generator(SEED, "crashes")
    for _ in range(60):
        attempt = forks.run("run", recipe, "--dir", run, crash_at=int(draw.integers(15, 220)))
        if attempt.status == 0:
            break
        assert attempt.status == -signal.SIGKILL, attempt.said
        crashes += 1
    assert crashes >= 6
    assert difference(content(reference), content(run)) == []


def changed(contents: dict[str, object], names: Sequence[str]) -> dict[str, object]:
    """Without manifests and last checkpoints of these stages: their settings are not the same, and so they save at other steps."""
    left_out = {f"{stage}/manifest.json" for stage in names} | {f"last checkpoint of {stage}" for stage in names}
    return {name: value for name, value in contents.items() if name not in left_out}


def test_a_polite_stop_writes_a_checkpoint_and_changes_nothing(forks: Forks, recipe: Path, reference: Path) -> None:
    """With checkpoints hours apart, SIGTERM in sft ends with 143 and Ctrl-C in ppo with 130, each after a checkpoint of its step."""
    run = recipe.parent / "stopped"
    look = Look(run)
    command = ("run", recipe, "--dir", run, "--set", "sft.checkpoint_every=9999", "--set", "ppo.checkpoint_every=9999")
    for number, code, stage in ((signal.SIGTERM, 143, "sft"), (signal.SIGINT, 130, "ppo")):
        attempt = forks.start(*command)
        assert attempt.until(lambda stage=stage: look.step(stage) >= 1), attempt.said
        attempt.send(number)
        assert attempt.wait() == code, attempt.said
        assert "run the same command again" in attempt.said
        saved = [int(path.name.removeprefix("step-")) for path in (look.stage(stage) / "checkpoints").glob("step-*")]
        assert saved == [look.step(stage) + 1]
        plan = forks.run("plan", *command[1:])
        assert f"stopped after step {saved[0]}" in plan.said
    last = forks.run(*command)
    assert last.status == 0, last.said
    assert f"ppo: going on from step {saved[0]} of 5" in last.said
    ours, theirs = (changed(content(path), STAGES) for path in (reference, run))
    assert difference(ours, theirs) == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_reference_has_what_is_compared(reference: Path, stage: str) -> None:
    """The comparison would be worth nothing if it compared nothing."""
    found = content(reference)
    assert found[f"{stage}/manifest.json"]["status"] == "published"
    file = {
        "prompts": "train.jsonl",
        "pairs": "preferences.jsonl",
        "best": "conversations.jsonl",
        "report": "table.json",
    }.get(stage, "final/model.safetensors")
    assert len(found[f"{stage}/{file}"]) == 64
    if stage in TRAINED:
        state = found[f"last checkpoint of {stage}"]
        assert {"parameters", "exp_avg", "exp_avg_sq"} <= {part for line in state.splitlines()[1:] for part in line.split()[1].split("/")}
    if stage in {"spoiled", "wild"}:
        assert {name for _, _, name, _ in found[f"{stage}/events.jsonl"]} > {"skipped", "rollbacks", "loss"}
        passed = [samples for _, _, name, samples in found[f"{stage}/events.jsonl"] if name == "skipped"]
        assert [any(name.startswith("s7") or name.endswith("@3") for name in samples) for samples in passed] == [True] * {"spoiled": 2, "wild": 1}[
            stage
        ]
    if stage == "ppo":
        assert len(found["ppo/rollouts.jsonl"]) == 64
        assert {name for _, _, name, _ in found["ppo/events.jsonl"]} > {"reward", "kl", "kl_coef", "engine_gap", "critic/loss"}
