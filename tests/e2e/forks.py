"""Many attempts at `xwin`, each a process of its own, without paying for the import of torch each time.

A server process imports what runs need, computes nothing, and forks a child per attempt. Started as a script it is that server; imported,
it is the client.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

LONGEST = 120.0
"""Seconds that one attempt may take."""

M_ARENA_MAX = -8
"""The number that malloc.h gives this setting of mallopt(3)."""

PRELOADED = (
    "encodings.utf_8_sig",
    "matplotlib.figure",
    "peft",
    "reasoning_gym",
    "scipy.stats",
    "torch.distributed.checkpoint",
    "transformers.models.llama.modeling_llama",
    "xwin.cli.main",
    "xwin.recipe.execute",
    "xwin.stages._context",
    "xwin.stages.best_of_n",
    "xwin.stages.evaluate",
    "xwin.stages.pairs",
    "xwin.stages.preference",
    "xwin.stages.prompts",
    "xwin.stages.raft",
    "xwin.stages.reward_model",
    "xwin.stages.rl",
    "xwin.stages.sft",
)


@dataclass
class Attempt:
    """A run of `xwin` that may be at work."""

    pid: int
    log: Path
    answers: IO[str]
    status: int | None = None
    begun: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether the process is gone."""
        if self.status is None and select.select([self.answers], [], [], 0)[0]:
            self.status = int(self.answers.readline())
        return self.status is not None

    def wait(self) -> int:
        """The exit code; minus the number of the signal that killed it."""
        while not self.ended():
            if time.monotonic() - self.begun > LONGEST:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"xwin took more than {LONGEST} s:\n{self.said}")
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def until(self, moment: Callable[[], bool]) -> bool:
        """Waits for a moment, watching as fast as it can; False when the process ended before it came."""
        while not self.ended():
            if moment():
                return True
            if time.monotonic() - self.begun > LONGEST:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"the moment never came:\n{self.said}")
            time.sleep(0.0003)
        return False

    def send(self, number: signal.Signals) -> None:
        """A signal to this attempt, and to nothing else: it is waited for by its parent only after it ended."""
        if not self.ended():
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """What it printed so far, on stdout and stderr."""
        return self.log.read_text(errors="replace")


class Forks:
    """The client: starts the server, and attempts one after the other."""

    def __init__(self, logs: Path, cache: Path) -> None:
        self.logs, self.count = logs, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XWIN_CACHE": str(cache)}
        self.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"

    def start(self, *args: str | Path, crash_at: int | None = None, crash_in: str = "", under: Mapping[str, Any] = MappingProxyType({})) -> Attempt:
        """`xwin ARGS` in a fresh process.

        Args:
            args: of the program.
            crash_at: it kills itself before its n-th operation on files under the folder of --dir.
            crash_in: only files whose path within that folder begins like this count.
            under: the conditions it lives under, see `_condition`.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.count += 1
        log = self.logs / f"{self.count:03d}.log"
        order = {"args": [str(a) for a in args], "log": str(log), "crash_at": crash_at, "crash_in": crash_in, "under": dict(under)}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return Attempt(int(self.server.stdout.readline()), log, self.server.stdout)

    def run(self, *args: str | Path, crash_at: int | None = None, crash_in: str = "", under: Mapping[str, Any] = MappingProxyType({})) -> Attempt:
        """The same, ended."""
        attempt = self.start(*args, crash_at=crash_at, crash_in=crash_in, under=under)
        attempt.wait()
        return attempt

    def close(self) -> None:
        """Ends the server."""
        with self.server:  # closes its pipes and waits: it ends where its orders end
            pass


def serve() -> None:
    """Forks a child for each line on stdin: tells its pid, then how it ended."""
    for name in PRELOADED:
        __import__(name)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _attempt(order)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _attempt(order: dict[str, Any]) -> None:
    """The child: becomes `xwin ARGS`, and never returns."""
    code = 1
    try:
        output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(output, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["xwin", *order["args"]]
        if "--dir" in sys.argv:
            folder = sys.argv[sys.argv.index("--dir") + 1]
            _bear_witness(folder)
            if order["crash_at"] is not None:
                _crash(order["crash_at"], f"{folder}/{order['crash_in']}")
        for condition, value in order["under"].items():
            _condition(condition, value)
        from xwin.cli.main import main

        main()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except BaseException:  # noqa: BLE001 - the parent must not go on in here
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _condition(name: str, value: Any) -> None:
    """Makes life harder for this process.

    "environment": variables it has besides; "folder": where it starts; "memory": bytes that it may have on top of what it has;
    "user": number of the user it becomes; "clock": seconds that the clock of the day goes forward in a second.
    """
    if name == "environment":
        os.environ.update(value)
    elif name == "folder":
        os.chdir(value)
    elif name == "memory":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # a thread of its own would else set 64 MiB of addresses aside, used or not
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + value
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    elif name == "user":
        os.setgroups([])
        os.setgid(value)
        os.setuid(value)
    elif name == "clock":
        begun, there = time.monotonic(), time.time()
        time.time = lambda: there + value * (time.monotonic() - begun)


def _bear_witness(folder: str) -> None:
    """Notes the digests of all tensors of a stage's last checkpoint when the checkpoints of that stage are removed: they are its last state."""

    from safetensors.torch import load_file

    def watch(event: str, args: Sequence[Any]) -> None:
        if event != "shutil.rmtree" or not (str(args[0]).startswith(folder) and str(args[0]).endswith("/checkpoints")):
            return
        shards = sorted(Path(args[0]).glob("step-*/*.safetensors"))
        notes = Path(f"{folder}.witness")
        notes.mkdir(exist_ok=True)
        if shards:
            tensors = load_file(shards[-1])
            digests = [f"{hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()} {name}" for name in sorted(tensors)]
            (notes / Path(args[0]).parent.name).write_text("\n".join([shards[-1].parent.name, *digests]))

    sys.addaudithook(watch)


def _crash(at: int, folder: str) -> None:
    """Kills this process right before its `at`-th operation that changes files under `folder`."""
    left = at

    def watch(event: str, args: Sequence[Any]) -> None:
        nonlocal left
        if event not in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"} or folder not in str(args[0]):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    serve()
