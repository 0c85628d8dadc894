"""The Ray cluster that workers live in: starting one here or joining one, quietly, and finding room for workers.

This file and workers.py are the only doors to Ray.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from xwin.errors import MissingExtra, UserError

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray reads these when it starts: nothing is told to anybody, and no advice is printed."""

STORE = 256 * 2**20
"""Bytes of shared memory for what is on its way between driver and workers: batches and numbers. Weights do not pass there."""

STARTS = 3
"""Times that Ray is started on this machine until it works."""

PATIENCE = 60.0
"""Seconds that a cluster has to find room for workers, and to find another machine when it has lost one."""

LOOK = 0.2
"""Seconds between looks at it."""

ANSWER = 10.0
"""Seconds that the head of a cluster has to answer at all."""

START = "start a cluster: `ray start --head` here, `ray start --address=...` elsewhere"

KEY = "where the cluster asks for a token: RAY_AUTH_MODE=token and the head's ~/.ray/auth_token on every machine; the same Ray and Python on all"

GONE = 10.0
"""Seconds that Ray's processes have to end by themselves."""


@dataclass(frozen=True)
class Cluster:
    """What is asked of Ray.

    Args:
        size: how many workers.
        folder: of the run; every worker must see it, and writes there what it prints.
        address: "local" starts Ray on this machine, "auto" takes the cluster that this machine belongs to, else host:port of a cluster.
        seconds: the longest that one piece of work may take.
    """

    size: int
    folder: Path
    address: str = "local"
    seconds: float = 1800.0


def require_ray() -> None:
    """Sees to it that Ray can be imported.

    Raises:
        MissingExtra: it cannot.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "cluster")


def connect(address: str) -> None:
    """Starts Ray on this machine, or joins a cluster.

    Raises:
        UserError: no cluster is there, it asks for a token, or its Ray or Python is another.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    local = address == "local"
    _require_answer(address)
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE} if local else {}
    for attempt in range(STARTS):
        try:
            with _handlers_kept():
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
            printing: Any = importlib.import_module("ray._private.worker")
            printing._worker_logs_enabled = False  # it still would tell stdout of each worker that dies, and so do we
            return
        except Exception as error:  # Ray raises plain ones, too
            disconnect()
            if local and attempt + 1 < STARTS:
                continue  # its parts wait for each other for seconds that are fixed: on a busy machine too few
            fix = "free the machine of other work" if local else START if address == "auto" else KEY
            raise UserError(f"Ray cannot be joined: {_first_line(error)}", f"ray.address {address}", fix) from error


def _require_answer(address: str) -> None:
    """Sees to it that something listens at host:port: Ray itself would look for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"Ray cannot be joined: nothing answers there ({error})", f"ray.address {address}", START) from error


def disconnect() -> None:
    """Leaves the cluster, and ends it where it was started here; returns when its processes are gone."""
    import ray

    here = [process for process in psutil.Process().children(recursive=True) if _is_of_ray(process)]
    ray.shutdown()
    _, alive = psutil.wait_procs(here, timeout=GONE)
    for process in alive:
        process.kill()


def what_computes() -> str:
    """ "GPU" where the cluster has any, else "CPU": each worker gets one."""
    import ray

    return "GPU" if ray.cluster_resources().get("GPU", 0) else "CPU"


def room(kind: str, size: int, patience: float) -> Any:
    """Room for workers, on as few machines as possible.

    Args:
        kind: "CPU" or "GPU".
        size: how many of them.
        patience: seconds that a cluster that is too small has to grow, when it has just lost a machine.

    Returns:
        A placement group of Ray.

    Raises:
        UserError: the cluster is too small, or somebody else has the room.
    """
    import ray

    until = time.monotonic() + patience
    while (have := int(ray.cluster_resources().get(kind, 0))) < size:
        if time.monotonic() >= until:
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
            fix = f"set workers: {max(have, 1)}, or add machines: `ray start --address=...` on each, and ray.address: auto"
            raise UserError(f"{size} workers are asked for, and the cluster has {_many(have, kind)} on {_many(nodes, 'machine')}", "workers", fix)
        time.sleep(LOOK)
    group = ray.util.placement_group([{kind: 1}] * size, strategy="PACK")
    if not group.wait(PATIENCE):
        free = int(ray.available_resources().get(kind, 0))
        ray.util.remove_placement_group(group)
        what = f"{size} workers are asked for, and of the {_many(have, kind)} of the cluster only {free} can be had"
        raise UserError(what, "workers", "wait for what else runs there, or lower workers")
    return group


def _many(count: int, what: str) -> str:
    """Example: "1 CPU", "2 CPUs" """
    return f"{count} {what}{'s' * (count != 1)}"


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end the process without a checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _is_of_ray(process: psutil.Process) -> bool:
    """A program of its package, or a worker, which calls itself "ray::...": those letters alone may be in a path of anybody."""
    import ray

    package = str(Path(ray.__file__).parent)
    try:
        return any(word.startswith("ray::") or package in word for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
