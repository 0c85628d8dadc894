"""Two workers on this machine, over gloo: `python -m tests.distributed.ranks FOLDER PORT`. Each writes what it saw to FOLDER/RANK.pickle.

One process loads what takes long to load and becomes two. FOLDER holds the models and, in `one`, a checkpoint that one process wrote.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.distributed.cases import CASES, Case, gradient, rows, share, steps, trained, whole
from xwin.data.batch import Batch, pack
from xwin.distributed.deal import deal
from xwin.distributed.shard import full
from xwin.distributed.world import World
from xwin.errors import DataError, XwinError
from xwin.learning import checkpoint
from xwin.learning.keep import Keep
from xwin.learning.learner import Learner, Origin
from xwin.learning.optim import Optim
from xwin.models.tuning import Frozen, Full, LoRA
from xwin.objectives.dpo import Dpo
from xwin.objectives.ppo import Ppo
from xwin.objectives.sft import Sft

SIZE = 2
ADAM = Optim(lr=1e-3, weight_decay=0.1, max_norm=1.0)
RESUMED = {
    "full": Case(Sft(), optim=ADAM),
    "lora": Case(Dpo(), tune=LoRA(rank=4), optim=ADAM),
    "head": Case(CASES["value"].objective, "value", optim=ADAM),
}
PUBLISHED = {
    "full": Case(Sft()),
    "untied": Case(Sft(), tied=False),
    "lora": Case(Sft(), tune=LoRA(rank=4), dtype="bfloat16"),
    "scores": Case(CASES["bradley_terry"].objective, "score", tune=LoRA(rank=4)),
}


def speaking(world: World) -> dict[str, Any]:
    """What workers say to each other."""
    both = world.gather({"rank": world.rank})
    total = world.sum(torch.tensor([1.0, 10.0 * world.rank]))
    return {"gathered": both, "sum": total.tolist(), "failed": _failed(world)}


def _failed(world: World) -> str:
    try:
        with world.together():
            if world.rank == 1:
                raise DataError("is broken", "row 7")
    except DataError as error:
        return str(error)
    return ""


def reading(folder: Path, world: World) -> dict[str, Any]:
    """Forward and evaluate over shares; log-probs in the order of the batches."""
    batches, reads = steps(rows(Sft()))[0], frozenset({"logp"})
    dealt, found = deal(batches, world.size), {}
    for name, case in {"frozen": Case(Sft(), tune=Frozen()), "lora": Case(Sft(), tune=LoRA(rank=4))}.items():
        learner = case.learner(folder, world)
        readers = {name: learner} | ({"origin": Origin(learner)} if name == "lora" else {})
        for who, reader in readers.items():
            said = world.gather([out.get("logp") for out in reader.forward(dealt.shares[world.rank], reads)])
            found[who] = dealt.collect(said)
    found["loss"] = CASES["sft"].learner(folder, world).evaluate(dealt.shares[world.rank])
    return found


def resumed(folder: Path, world: World) -> dict[str, Any]:
    """A checkpoint of one process goes on here, and is saved again."""
    found = {}
    for name, case in RESUMED.items():
        learner = case.learner(folder, world)
        state = checkpoint.load(folder / "one" / name / "step-000002", {"policy": learner.state()}, world)
        learner.steps_done = state["steps_done"]
        loaded = whole(learner)
        _, said = gradient(learner, steps(rows(case.objective))[2])
        path = checkpoint.save(folder / "two" / name, 3, {"policy": learner.state()}, {"steps_done": 3}, world=world)
        found[name] = {"loaded": loaded, "saved": whole(learner), "path": path, "said": said}
    return found


def best(folder: Path, world: World) -> dict[str, list[str]]:
    """Parameters that were put aside come back after steps; which of them differ then, and which had moved."""
    found = {}
    for name in ("full", "lora"):
        case = RESUMED[name]
        learner = case.learner(folder, world)
        keep, path, before = Keep({"policy": learner}), folder / "best" / f"{name}.safetensors", _parameters(learner)
        keep.save_first(path, 0)
        for batches in steps(rows(case.objective)):
            learner.step(share(batches, world))
        moved = _parameters(learner)
        keep.load_first(path)
        after = _parameters(learner)
        found[f"{name} moved"] = [key for key, x in before.items() if not torch.equal(moved[key], x)]
        found[f"{name} lost"] = [key for key, x in before.items() if not torch.equal(after[key], x)]
    return found


def _parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: full(x).clone() for name, x in learner.state()["parameters"].items()}


def broken(folder: Path, world: World) -> dict[str, Any]:
    """A step that must not be taken: a number that is not finite on one worker, and a step in which nothing is trained."""
    case = Case(Ppo(), optim=ADAM)
    learner, samples = case.learner(folder, world), rows(Ppo())
    gradient(learner, steps(samples)[0])
    before = whole(learner)
    bad = replace(samples[3], columns={**samples[3].columns, "advantage": (float("nan"),) * len(samples[3].tokens)})
    idle = [replace(s, mask=(False,) * len(s.tokens), bond=None) for s in samples]
    refused = [_refused(learner, steps([*samples[:3], bad, *samples[4:]])[2]), _refused(learner, pack(idle, tokens=100))]
    after = whole(learner)
    return {
        "refused": refused,
        "moved": [name for name in before if not torch.equal(before[name], after[name])],
        "next": gradient(learner, steps(samples)[2])[1],
    }


def _refused(learner: Any, batches: list[Batch]) -> XwinError | None:
    try:
        learner.step(share(batches, learner.world))
    except XwinError as error:
        return error
    return None


def published(folder: Path, world: World) -> None:
    """Folders that one process compares with its own."""
    for name, case in PUBLISHED.items():
        case.learner(folder, world).publish(folder / "published" / name)


def torn(folder: Path, world: World) -> str:
    """A checkpoint whose second file was altered: both workers hear of it."""
    path = next((folder / "torn").glob("step-*"))
    try:
        checkpoint.load(path, {"policy": CASES["sft"].learner(folder, world).state()}, world)
    except XwinError as error:
        return str(error)
    return ""


def full_disk(folder: Path, world: World) -> str:
    """The first worker cannot write where the checkpoint should go."""
    learner = Case(Sft(), tune=Full()).learner(folder, world)
    (folder / "file").touch()
    try:
        checkpoint.save(folder / "file" / "checkpoints", 1, {"policy": learner.state()}, {}, world=world)
    except (XwinError, OSError) as error:
        return type(error).__name__
    return ""


def main(rank: int, folder: Path, port: str) -> None:
    """One of the two."""
    world = World.join(rank, SIZE, f"127.0.0.1:{port}", backend="gloo", limit=240)
    found: dict[str, Any] = {"speaking": speaking(world), "trained": {name: trained(case, folder, world) for name, case in CASES.items()}}
    for work in (reading, resumed, best, broken, published, torn, full_disk):
        found[work.__name__] = work(folder, world)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    world.leave()


if __name__ == "__main__":
    child = os.fork()
    main(0 if child else 1, Path(sys.argv[1]), sys.argv[2])
    if child:
        sys.exit(os.waitpid(child, 0)[1])
