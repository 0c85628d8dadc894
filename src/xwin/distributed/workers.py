"""Workers: processes on the machines of a Ray cluster that hold objects and do, together, what the driver asks.

Ray places the processes, carries calls and answers, and notices the dead. What they say to each other while they compute goes through
torch.distributed; see world.py. A group that lost one of its own is ended as a whole and made anew: there is no half of a collective.
"""

from __future__ import annotations

import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xwin.distributed.cluster import LOOK, PATIENCE, Cluster, connect, disconnect, room, what_computes
from xwin.distributed.heard import Heard
from xwin.distributed.seat import Facts, Refused, Seat, package_versions
from xwin.errors import UserError, WorkerLost, XwinError

GRACE = 60.0
"""Seconds that the others have to end what they do when one of them fails."""

ANSWER = 5.0
"""Seconds that a worker has to say where it is."""

WATCH = "watch"
"""Calls of this group are answered while a worker is at work."""


@dataclass(frozen=True, eq=False)
class Key:
    """Names an object that every worker holds. Once nobody here has the key any more, the workers let go of the object."""

    number: int


@dataclass
class Workers:
    """A group that is started when it is first needed. Use it in `with`: it leaves no process behind.

    Args:
        cluster: what is asked of Ray.
        say: told what the workers print, line by line.
    """

    cluster: Cluster
    say: Callable[[str], None]
    _seats: list[Any] = field(default_factory=list)
    _facts: list[Facts] = field(default_factory=list)
    _heard: Heard = field(default_factory=lambda: Heard(()))
    _placed: Any = None
    _keys: int = 0
    _unasked: list[int] = field(default_factory=list)
    """Keys that nobody has any more, of objects that are still held."""
    _connected: bool = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many."""
        return self.cluster.size

    def hold(self, make: Callable[[Any], Any]) -> Key:
        """Makes an object on every worker, given its World.

        Args:
            make: can be pickled.

        Returns:
            The key of what each worker holds.

        Raises:
            UserError: the group cannot be started: too few machines, different versions, a folder that is not shared.
            WorkerLost: a worker died or hangs.
            XwinError: what `make` raises.
        """
        if not self._seats:
            try:
                self._start()
            except XwinError:
                self.stop()
                raise
        self._let_go()
        self._keys += 1
        key = Key(self._keys)
        weakref.finalize(key, self._unasked.append, key.number)
        self._gather([seat.hold.remote(key.number, make) for seat in self._seats])
        return key

    def do(self, what: Callable[..., Any], *keys: Key, shares: Sequence[Any] | None = None) -> list[Any]:
        """Calls `what(*objects, share)` on all workers at once.

        Args:
            what: can be pickled: a function of a module, or a partial of one.
            keys: of the objects.
            shares: one for each worker; None = `what` takes none.

        Returns:
            The answers, by rank.

        Raises:
            WorkerLost: a worker died or hangs; the others were ended too.
            XwinError: what `what` raises, of the first worker that raised it.
        """
        self._let_go()
        own = [()] * self.size if shares is None else [(share,) for share in shares]
        numbers = [key.number for key in keys]
        return self._gather([seat.do.remote(what, numbers, share) for seat, share in zip(self._seats, own, strict=True)])

    def drop(self) -> None:
        """Every worker lets go of all it holds."""
        if self._seats:
            self._gather([seat.drop.remote() for seat in self._seats])

    def _let_go(self) -> None:
        """Tells the workers what nobody asks for any more: a model that is done with makes room for the next."""
        gone = self._unasked.copy()
        del self._unasked[: len(gone)]
        if gone and self._seats:
            self._gather([seat.drop.remote(gone) for seat in self._seats])

    def stop(self) -> None:
        """Ends all workers. The next `hold` starts others."""
        if not self._connected:
            return
        import ray

        for seat in self._seats:
            ray.kill(seat, no_restart=True)
        if self._placed is not None:
            ray.util.remove_placement_group(self._placed)
        self._seats, self._placed = [], None
        self._hear()

    def close(self) -> None:
        """Ends all workers, and Ray where it was started here; returns when their processes are gone."""
        self.stop()
        if self._connected:
            disconnect()
        self._connected = False

    def _start(self) -> None:
        """Connects where that has not been done, places the workers, looks at them, and lets them meet."""
        patience, self._facts = PATIENCE if self._connected else 0.0, []
        if not self._connected:
            connect(self.cluster.address)
            self._connected = True
        kind = what_computes()
        self._placed = room(kind, self.size, patience)
        self._seats = [self._seat(rank, kind) for rank in range(self.size)]
        hosts = self._gather([seat.__ray_call__.remote(_host) for seat in self._seats])
        self._look_at_them(hosts)
        (meeting,) = self._gather([self._seats[0].address.remote(hosts[0])])
        backend, limit = "nccl" if kind == "GPU" else "gloo", self.cluster.seconds + GRACE  # we notice first who hangs
        self._gather([seat.join.remote(meeting, backend, limit) for seat in self._seats])

    def _seat(self, rank: int, kind: str) -> Any:
        """A process in its place. On a CPU the workers share the cores."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        threads = str(max(1, int(ray.cluster_resources().get("CPU", 1)) // self.size))
        remote: Any = ray.remote  # its types know neither zero GPUs nor groups of methods
        actor = remote(
            num_cpus=int(kind == "CPU"),
            num_gpus=int(kind == "GPU"),
            max_restarts=0,
            concurrency_groups={WATCH: 1},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._placed, placement_group_bundle_index=rank),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        )
        return actor(Seat).remote(rank, self.size)

    def _look_at_them(self, hosts: Sequence[str]) -> None:
        """Asks each worker who it is; from then on it prints to a file.

        Raises:
            UserError: a worker does not see the run directory, or has other packages than the driver.
        """
        folder = self.cluster.folder.resolve() / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        token, secret = folder / "token", uuid.uuid4().hex
        token.write_text(secret, encoding="utf-8")
        self._facts = self._gather([seat.facts.remote(host, token) for seat, host in zip(self._seats, hosts, strict=True)])
        token.unlink()
        require_alike(self._facts, secret, self.cluster.folder)
        logs = [folder / f"{rank}.log" for rank in range(self.size)]
        self._heard = Heard(logs)
        self._gather([seat.tell.remote(log) for seat, log in zip(self._seats, logs, strict=True)])

    def _gather(self, asked: Sequence[Any]) -> list[Any]:
        """The answers of the workers that were asked, by rank. Raises what `do` raises."""
        answers = self._wait(asked)
        self._hear()
        refused = next((answer for answer in answers if isinstance(answer, Refused)), None)
        if refused is None:
            return answers
        if isinstance(refused.error, WorkerLost):
            self.stop()
        raise refused.error

    def _wait(self, asked: Sequence[Any]) -> list[Any]:
        """What they answer, an error of ours included.

        When one of them fails the others may be waiting for it: they get GRACE seconds, in which it mostly turns out that one has died.
        """
        import ray

        answers: dict[int, Any] = {}
        until, late = time.monotonic() + self.cluster.seconds, False
        while len(answers) < len(asked) and not late:
            ready, _ = ray.wait([ref for rank, ref in enumerate(asked) if rank not in answers], timeout=LOOK)
            self._hear()
            for rank in map(list(asked).index, ready):
                answers[rank] = self._answer(rank, asked[rank])
                if isinstance(answers[rank], Refused | Exception):
                    until = min(until, time.monotonic() + GRACE)
            late = time.monotonic() > until
        failed = next((answers[rank] for rank in sorted(answers) if isinstance(answers[rank], Exception)), None)
        if failed is not None:
            if late:
                self.stop()
            raise failed
        if len(answers) == len(asked):
            return [answers[rank] for rank in range(len(asked))]
        raise self._hung([rank for rank in range(len(asked)) if rank not in answers], list(answers.values()))

    def _answer(self, rank: int, ref: Any) -> Any:
        """What a worker answers, or the error it failed with.

        Raises:
            WorkerLost: it died.
        """
        from ray import exceptions

        try:
            return _get(ref)
        except exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
            self.stop()
            raise WorkerLost("died, or its machine is gone", self._named(rank), "run the same command again: it goes on where it stopped") from error

    def _hung(self, late: Sequence[int], answers: Sequence[Any]) -> Exception:
        """The error that says who does not answer, and where the others wait. Where one refused, the others could only wait for it."""
        import ray

        refused = next((answer.error for answer in answers if isinstance(answer, Refused)), None)
        asked = {self._seats[rank].where.options(concurrency_group=WATCH).remote(): rank for rank in late}
        told, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
        where = {asked[ref]: self._answer(asked[ref], ref) for ref in told}
        self.stop()
        if refused is not None:
            return refused
        silent = [rank for rank in late if rank not in where] or list(late)
        what = f"no answer after {self.cluster.seconds:g} s"
        others = "; ".join(f"worker {rank} is at {line}" for rank, line in where.items())
        fix = "look at its machine; where steps really take so long, raise ray.seconds"
        return WorkerLost(f"{what}; {others}" if others else what, ", ".join(map(self._named, silent)), fix)

    def _named(self, rank: int) -> str:
        """Example: "worker 1 (10.0.0.7, process 4711)" """
        return f"worker {rank} ({self._facts[rank].place})" if rank < len(self._facts) else f"worker {rank}"

    def _hear(self) -> None:
        for line in self._heard.fresh():
            self.say(line)


@dataclass(frozen=True, eq=False)
class Elsewhere(Mapping[str, Any]):
    """A mapping that the workers have. Who reads it here fetches all of it from the first of them; who works there need not.

    Args:
        workers: who have it.
        key: of the object that it belongs to.
        what: gives it, of that object; every worker is asked.
    """

    workers: Workers
    key: Key
    what: Callable[[Any], Mapping[str, Any] | None]

    @cached_property
    def _here(self) -> Mapping[str, Any]:
        return self.workers.do(self.what, self.key)[0]

    def __getitem__(self, name: str) -> Any:
        return self._here[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._here)

    def __len__(self) -> int:
        return len(self._here)


def require_alike(found: Sequence[Facts], secret: str, folder: Path) -> None:
    """Sees to it that workers and driver work with the same files and the same packages.

    Args:
        found: of each worker, by rank.
        secret: what the driver wrote into the run directory.
        folder: the run directory.

    Raises:
        UserError: a worker does not see what the driver wrote, or has another version of a package.
    """
    blind = [f"worker {rank} ({facts.place})" for rank, facts in enumerate(found) if facts.token != secret]
    if blind:
        what = f"the run directory is not shared: {', '.join(blind)} does not see what is written there"
        raise UserError(what, str(folder), "put it on a file system that all machines have at the same place: --dir")
    own = package_versions()
    for rank, facts in enumerate(found):
        theirs = {name: facts.versions.get(name, "nothing") for name in {**own, **facts.versions}}
        other = [f"{name} {version} there, {own.get(name, 'nothing')} here" for name, version in theirs.items() if version != own.get(name)]
        if other:
            fix = "install the same packages on all machines"
            raise UserError(f"has other packages than this process: {'; '.join(other)}", f"worker {rank} ({facts.place})", fix)


def _get(ref: Any) -> Any:
    import ray

    return ray.get(ref)


def _host(_seat: Seat) -> str:
    """Runs in a worker: the address of its machine."""
    import ray

    return ray.util.get_node_ip_address()
