"""`xwin run` with two workers: the same results as undisturbed, whoever dies; the same run with another number; nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from .chain import TRAINED, write_recipe
from .short import SHORT, content_of

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # every run starts Ray and two workers

PATIENCE = 600.0
"""Seconds that one run may take."""


@dataclass
class Run:
    """`xwin run` in a process of its own, and those that it started."""

    recipe: Path
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    family: set[psutil.Process] = field(default_factory=set)

    def until(self, moment: Callable[[], bool]) -> None:
        """Waits for a moment, noting every process that there is in the meantime."""
        end = time.monotonic() + PATIENCE
        while not moment():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            self._note()
            time.sleep(0.01)

    def wait(self) -> int:
        """The exit code."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.said
            self._note()
            time.sleep(0.02)
        return self.process.returncode

    def reached(self, stage: str, step: int) -> Callable[[], bool]:
        """Whether a stage has logged a step."""
        events = self.folder / "stages" / stage / "events.jsonl"
        return lambda: events.exists() and f'"step": {step},' in events.read_text()

    def workers(self) -> list[psutil.Process]:
        """The processes of the workers."""
        return [p for p in psutil.process_iter(["cmdline"]) if "ray::Seat" in " ".join(p.info["cmdline"] or ()) and p in self._family()]

    def left(self, patience: float = 5.0) -> list[str]:
        """Processes that are still there some seconds after the run has ended."""
        _, alive = psutil.wait_procs(list(self.family), timeout=patience)
        return [p.name() for p in alive]

    def _family(self) -> set[psutil.Process]:
        self._note()
        return self.family

    def _note(self) -> None:
        try:
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    @property
    def said(self) -> str:
        """Everything that was printed."""
        return self.log.read_text(errors="replace")


Start = Callable[..., Run]


@pytest.fixture
def start(cache: Path, tmp_path: Path) -> Iterator[Start]:
    """start(recipe, folder, *sets): a run."""
    runs: list[Run] = []

    def begin(recipe: Path, folder: Path, *sets: str, **environment: str) -> Run:
        log = tmp_path / f"{len(runs)}.log"
        chosen = [word for text in sets for word in ("--set", text)]
        command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "run", str(recipe), "--dir", str(folder), *chosen]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "XWIN_CACHE": str(cache)} | environment
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables, start_new_session=True)
        runs.append(Run(recipe, folder, process, log))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def losses(folder: Path, stage: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "stages" / stage / "events.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] == "loss"]


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers that nothing happened to. Not to be written to."""
    recipe = write_recipe(tmp_path_factory.mktemp("two"), SHORT)
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "run", str(recipe), "--dir", str(recipe.parent / "run")]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "XWIN_CACHE": str(cache)}
    done = subprocess.run([*command, "--set", "workers=2"], capture_output=True, text=True, check=False, env=variables, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray" not in done.stderr.lower()
    return recipe.parent / "run"


def again(start: Start, undisturbed: Path, tmp_path: Path, *sets: str, **environment: str) -> Run:
    """The run once more, in a folder of its own."""
    return start(undisturbed.parent / "chain.yaml", tmp_path / "run", *sets, **environment)


def test_two_workers_learn_what_one_learns_in_every_kind_of_stage(start: Start, tmp_path: Path) -> None:
    """Among them ppo with critic and reference, adapters, engines and judges, and two stages that roll back."""
    recipe, path = write_recipe(tmp_path), os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, workers in ((one, 1), (two, 2)):
        done = start(recipe, folder, f"workers={workers}", PYTHONPATH=path)
        assert done.wait() == 0, done.said
    for stage in TRAINED:
        assert losses(two, stage) == pytest.approx(losses(one, stage), rel=1e-2, abs=1e-4), stage
        ours, theirs = (sorted(file.name for file in (run / "stages" / stage / "final").iterdir()) for run in (one, two))
        assert ours == theirs


def test_a_killed_worker_is_replaced_and_the_run_ends_with_the_same_weights(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    run = again(start, undisturbed, tmp_path, "workers=2")
    run.until(run.reached("sft", 3))
    run.workers()[-1].send_signal(signal.SIGKILL)
    assert run.wait() == 0, run.said
    assert "died, or its machine is gone; going on from the last checkpoint with new workers" in run.said
    assert content_of(run.folder) == content_of(undisturbed)
    assert run.left() == []


def test_a_killed_driver_leaves_nothing_and_goes_on_when_it_is_started_again(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    run = again(start, undisturbed, tmp_path, "workers=2")
    run.until(run.reached("sft", 3))
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    assert run.left(120.0) == [], "Ray's own agents look for their parent every few seconds"
    more = again(start, undisturbed, tmp_path, "workers=2")
    assert more.wait() == 0, more.said
    assert "going on from step" in more.said
    assert content_of(more.folder) == content_of(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_another_number_of_workers_goes_on(
    start: Start, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = again(start, undisturbed, tmp_path, "workers=2")
    run.until(run.reached("sft", 3))
    if number == signal.SIGINT:
        os.killpg(run.process.pid, number)  # as a terminal does
    else:
        run.process.send_signal(number)
    assert run.wait() == 128 + number, run.said
    assert "Traceback" not in run.said
    assert run.left() == []
    alone = again(start, undisturbed, tmp_path)
    assert alone.wait() == 0, alone.said
    assert "going on from step" in alone.said
    assert losses(alone.folder, "sft") == pytest.approx(losses(undisturbed, "sft"), rel=1e-3)


@dataclass
class Nodes:
    """A Ray cluster of several nodes on this machine."""

    address: str
    folder: Path
    key: dict[str, str]
    """What makes a process one that may join."""

    def add(self, **environment: str) -> psutil.Process:
        """A node of one CPU; its raylet."""
        before, environment = self._raylets(), self.key | environment
        ray("start", f"--address={self.address}", "--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={self.folder}", **environment)
        (found,) = self._raylets() - before
        return found

    def _raylets(self) -> set[psutil.Process]:
        found = psutil.process_iter(["name", "cmdline"])
        return {p for p in found if p.info["name"] == "raylet" and str(self.folder) in " ".join(p.info["cmdline"] or ())}

    def everybody(self) -> list[psutil.Process]:
        """All processes of the cluster."""
        return [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(p.info["cmdline"] or ())]


def ray(*arguments: str, **environment: str) -> None:
    program = Path(sys.executable).with_name("ray")
    variables = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | environment
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, env=variables, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster whose head has no CPU for workers, and which asks for a token."""
    folder = Path(f"/tmp/xr{os.getpid()}")  # short: Ray puts sockets there
    folder.mkdir()
    (folder / "token").write_text("0" * 64)
    key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port = 20000 + os.getpid() % 9000
    options = ("--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}")
    ray("start", "--head", f"--port={port}", *options, **key)
    found = Nodes(f"127.0.0.1:{port}", folder, key)
    yield found
    for process in found.everybody():
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_lost_node_is_survived(start: Start, undisturbed: Path, tmp_path: Path, nodes: Nodes) -> None:
    nodes.add()
    lost = nodes.add()
    run = again(start, undisturbed, tmp_path, "workers=2", f"ray.address={nodes.address}", **nodes.key)
    run.until(run.reached("sft", 3))
    for process in (lost, *lost.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # its parent's death may be quicker
            process.kill()
    nodes.add()  # the run waits for it
    assert run.wait() == 0, run.said
    assert "going on from the last checkpoint with new workers" in run.said
    assert content_of(run.folder) == content_of(undisturbed)


def test_a_missing_token_too_many_workers_and_other_packages_are_told(start: Start, undisturbed: Path, tmp_path: Path, nodes: Nodes) -> None:
    nodes.add()
    stranger = again(start, undisturbed, tmp_path, "workers=2", f"ray.address={nodes.address}", RAY_AUTH_MODE="disabled")
    assert stranger.wait() == 2
    assert "where the cluster asks for a token: RAY_AUTH_MODE=token" in stranger.said
    few = again(start, undisturbed, tmp_path, "workers=2", f"ray.address={nodes.address}", **nodes.key)
    assert few.wait() == 2
    assert "2 workers are asked for, and the cluster has 1 CPU on 2 machines" in few.said
    other = tmp_path / "other" / "safetensors-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.0.1\n")
    nodes.add(PYTHONPATH=os.pathsep.join([str(other.parent), os.environ.get("PYTHONPATH", "")]))
    run = again(start, undisturbed, tmp_path, "workers=2", f"ray.address={nodes.address}", **nodes.key)
    assert run.wait() == 2
    assert "has other packages than this process: safetensors 0.0.1 there" in run.said


def test_an_address_where_no_cluster_is_is_told(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    run = again(start, undisturbed, tmp_path, "workers=2", "ray.address=127.0.0.1:1")
    assert run.wait() == 2
    assert "ray.address 127.0.0.1:1: Ray cannot be joined: nothing answers there" in run.said
    assert "Traceback" not in run.said
