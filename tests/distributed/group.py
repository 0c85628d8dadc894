"""Two workers on this machine, and what can happen to them: group.py compute|hang MODEL FOLDER writes what happened to FOLDER/found.json.

One process and one start of Ray for all of it, which costs seconds; test_ray_workers.py asks what was found.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from xwin.data.rollout import Prompt
from xwin.distributed.cluster import Cluster, room
from xwin.distributed.workers import Workers
from xwin.distributed.world import World
from xwin.engines._replicas import Replicas
from xwin.engines.base import Engine, Sampling
from xwin.engines.local import Local
from xwin.errors import StepRefused, XwinError
from xwin.learning.blueprint import Blueprint
from xwin.learning.group import SharedLearner
from xwin.models.tuning import Full
from xwin.objectives.sft import Sft

HUNG = 4.0
"""Seconds after which a worker counts as hung here."""

PROMPTS = [Prompt(f"q{i}", tuple(range(5, 9 + i % 4))) for i in range(7)]


def itself(world: World) -> World:
    """What a worker holds: its place."""
    print(f"I am {world.rank}")
    print("here", file=sys.stderr)
    os.system("echo from a child")
    return world


def total(world: World, share: float) -> float:
    return float(world.sum(torch.tensor(share)))


def refuse(world: World) -> None:
    raise StepRefused("too large", "step 3", "look", metric="loss", value=float(world.rank), samples=("a", "b"))


def blunder(world: World) -> None:
    raise ZeroDivisionError(f"of worker {world.rank}")


def die(world: World, dies: bool) -> float:
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return total(world, 1.0)


def sleep(world: World, sleeps: bool) -> float:
    if sleeps:
        time.sleep(1000)
    return total(world, 1.0)


def freeze(world: World, freezes: bool) -> float:
    if freezes:
        os.kill(os.getpid(), signal.SIGSTOP)
    return total(world, 1.0)


def threads(world: World) -> tuple[int, str]:
    return torch.get_num_threads(), str(world.device)


def networks(world: World) -> int:
    """How many this worker has in its memory."""
    return sum(type(thing).__name__.endswith("PackedModel") for thing in gc.get_objects())  # FSDP gives a model a class of its own


def raised(what: Any) -> dict[str, Any]:
    """The error of a call, in words."""
    try:
        what()
    except XwinError as error:
        more = {"samples": error.samples} if isinstance(error, StepRefused) else {}
        return {"type": type(error).__name__, "where": error.where, "what": error.what, "fix": error.fix, **more}
    except ArithmeticError as error:
        return {"type": type(error).__name__, "what": str(error)}
    return {"type": "none"}


def written(engine: Engine) -> list[Any]:
    """All that an engine writes, in order of prompts and samples."""
    found = engine.generate(PROMPTS, Sampling(max_tokens=12), seed=3, n=3)
    return sorted([r.prompt_id, r.sample, list(r.completion), list(r.logp), r.finish, r.version] for r in found)


def compute(workers: Workers, found: dict[str, Any], model: Path) -> None:
    """What workers compute, refuse and fail at; then one is killed, and another group takes over."""
    key = workers.hold(itself)
    found["sum"] = workers.do(total, key, shares=[1.0, 2.0])
    found["threads"] = workers.do(threads, key)
    found["refused"] = raised(lambda: workers.do(refuse, key))
    found["after refusing"] = workers.do(total, key, shares=[1.0, 2.0])
    found["too many"] = raised(lambda: room("CPU", 999, 0.0))
    write(workers, found, model)
    found["networks left"] = workers.do(networks, key)
    found["blunder"] = raised(lambda: workers.do(blunder, key))
    found["killed"] = raised(lambda: workers.do(die, key, shares=[False, True]))
    found["after all"] = workers.do(total, workers.hold(itself), shares=[1.0, 2.0])


def hang(workers: Workers, found: dict[str, Any], _: Path) -> None:
    """One worker sleeps, then one does nothing at all."""
    for name, what in (("asleep", sleep), ("frozen", freeze)):
        key = workers.hold(itself)
        workers.cluster = replace(workers.cluster, seconds=HUNG)
        found[name] = raised(lambda what=what, key=key: workers.do(what, key, shares=[False, True]))
        workers.cluster = replace(workers.cluster, seconds=600.0)


def write(workers: Workers, found: dict[str, Any], model: Path) -> None:
    """One engine here, one on each worker; and weights that go from learner to engine."""
    alone, both = Local().build(model, (2,), "float32"), Replicas.build(workers, Local(), model, (2,), "float32")
    found["one engine"], found["two engines"] = written(alone), written(both)
    found["streamed"] = list(both.stream(PROMPTS[0], Sampling(max_tokens=4), seed=3))
    blueprint = Blueprint(model, "language", "float32", Full(), Sft())
    learner = SharedLearner.build(workers, blueprint)
    learner.steps_done = 5
    here = blueprint.build(World.alone())
    weights = learner.weights()
    found["weights"] = all(torch.equal(tensor, (weights.tensors or {})[name]) for name, tensor in (here.weights().tensors or {}).items())
    both.load(learner.weights())
    found["loaded"] = written(both)
    about = learner.about
    found["networks"] = workers.do(networks, learner.key)
    found["about"] = [str(about.dtype), about.context, about.adapted, about.heads]


def main(what: str, model: Path, folder: Path) -> None:
    """Writes found.json."""
    found: dict[str, Any] = {}
    said: list[str] = []
    handler = signal.getsignal(signal.SIGTERM)
    bystander = subprocess.Popen([sys.executable, "-c", "import sys; array = sys.stdin.read()"], stdin=subprocess.PIPE)
    with Workers(Cluster(2, folder, seconds=600.0), said.append) as workers:
        {"compute": compute, "hang": hang}[what](workers, found, model)
        found["handler"] = signal.getsignal(signal.SIGTERM) == handler
        processes = psutil.Process().children(recursive=True)
    bystander.communicate()
    found["bystander"] = bystander.returncode
    found["left"] = [name for p in processes for name in name_of(p)]
    found["said"] = said
    (folder / "found.json").write_text(json.dumps(found))


def name_of(process: psutil.Process) -> list[str]:
    """What a process that is still there is called."""
    with contextlib.suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return [process.name()]
    return []


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
