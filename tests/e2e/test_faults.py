"""Faults of the machine around a real run: each is one clear message and an exit code, and the run goes on when the fault is gone."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xwin.errors import CheckpointError
from xwin.learning import checkpoint

from .chain import content, difference, write_recipe
from .forks import Attempt, Forks
from .short import SHORT, copied, message

NOBODY = 65534


def results(run: Path) -> dict[str, object]:
    """What a run left but for its manifests, which hold its settings, and last checkpoints, which are where these say."""
    return {name: value for name, value in content(run).items() if not name.endswith("manifest.json") and not name.startswith("last checkpoint")}


def checkpoint_of(run: Path) -> Path:
    """The newest one."""
    return max((run / "stages" / "sft" / "checkpoints").glob("step-??????"))


def test_every_file_of_a_real_checkpoint_cut_at_every_tenth_is_named_before_it_is_opened(killed: Path, short: Path) -> None:
    path = checkpoint_of(copied(killed, short))
    files = sorted(path.iterdir())
    assert {file.name.partition("-")[0] for file in files} == {"DIGESTS", "shard", "state.json"}
    for file in files:
        whole = file.read_bytes()
        for tenth in range(10):
            file.write_bytes(whole[: len(whole) * tenth // 10])
            with pytest.raises(CheckpointError) as caught:
                checkpoint.load(path, {})  # would complain of the empty mapping if it looked at what is in the files
            assert caught.value.where == str(file)
        file.write_bytes(whole)
    checkpoint.verify(path)


def test_one_flipped_bit_in_each_file_of_a_real_checkpoint_is_named_before_it_is_opened(killed: Path, short: Path) -> None:
    path = checkpoint_of(copied(killed, short))
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for position in range(0, len(whole), len(whole) // 7):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
            with pytest.raises(CheckpointError) as caught:
                checkpoint.load(path, {})
            assert str(path) in caught.value.where
        file.write_bytes(whole)
    checkpoint.verify(path)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_a_read_only_disk_is_one_message_and_the_run_goes_on_once_it_can_write(forks: Forks, short: Path, finished: Path, small_disk: Path) -> None:
    """Read-only from the start, then read-only in the middle of sft."""
    run = small_disk / "run"
    remount(small_disk, "ro")
    said = message(forks.run("run", short, "--dir", run), 1)
    assert f"{run}" in said and "cannot write: Read-only file system" in said and "choose another folder with --dir" in said
    remount(small_disk, "rw")
    attempt = forks.start("run", short, "--dir", run)
    assert attempt.until(lambda: any((run / "stages" / "sft" / "checkpoints").glob("step-00000[2-9]"))), attempt.said
    os.kill(attempt.pid, signal.SIGSTOP)
    if subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, check=False).returncode:
        os.kill(attempt.pid, signal.SIGCONT)  # a file is open for writing just now: what was tested above will do
        attempt.wait()
    else:
        os.kill(attempt.pid, signal.SIGCONT)
        attempt.wait()
        assert "Read-only file system" in message(attempt, 1)
        remount(small_disk, "rw")
    again = forks.run("run", short, "--dir", run)
    assert again.status == 0, again.said
    assert difference(content(finished), content(run)) == []


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into, and this one alone may write to; with the recipe in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recipe(folder, SHORT)
        (folder / "private").mkdir()
        folder.chmod(0o555)
        (folder / "private").chmod(0o000)
        yield folder
        folder.chmod(0o755)
        (folder / "private").chmod(0o755)


@pytest.mark.parametrize("place", ["run", "private/run"], ids=["may not write", "may not look"])
def test_a_folder_without_permission_is_one_message(forks: Forks, public: Path, place: str) -> None:
    under = {"user": NOBODY} if os.geteuid() == 0 else {}
    said = message(forks.run("run", public / "chain.yaml", "--dir", public / place, under=under), 1)
    assert f"{public / place}" in said
    assert "cannot write: Permission denied" in said
    assert "change the permissions or choose another folder with --dir" in said


@pytest.mark.parametrize("speed", [-86400.0, pytest.param(86400.0, marks=pytest.mark.slow)], ids=["backwards", "ahead"])
def test_a_clock_that_runs_wild_changes_no_result_and_no_rate(forks: Forks, short: Path, finished: Path, speed: float) -> None:
    """A day a second. By the clock that cannot be set, no checkpoint is due before the end."""
    run = short.parent / "run"
    keep = ("--set", "sft.checkpoint_every=600")
    attempt = forks.start("run", short, "--dir", run, *keep, under={"clock": speed})
    assert not attempt.until(lambda: any((run / "stages" / "sft" / "checkpoints").glob("step-*"))), attempt.said
    assert attempt.status == 0, attempt.said
    assert difference(results(finished), results(run)) == []
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert (rows[-1]["time"] - rows[0]["time"]) * speed > 0  # it did run wild
    assert all(0 < row["value"] < 60 for row in rows if row["name"] == "seconds")
    assert all(row["value"] > 0 for row in rows if row["name"] == "tokens_per_second")
    assert 0 < json.loads((run / "stages" / "sft" / "manifest.json").read_text())["seconds"] < 60
    report = forks.run("report", run, "--json")
    assert report.status == 0 and "Traceback" not in report.said


def long_rows(folder: Path) -> None:
    """Rows of 20,000 tokens in all."""
    row = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "na " * 160}]}
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(40)))


LARGE = ("--set", "sft.tokens_per_batch=65536", "--set", "sft.tokens_per_step=65536", "--set", "sft.epochs=1", "--set", "sft.checkpoint_every=600")


def test_too_little_memory_names_the_setting_to_lower_and_lowering_it_helps(forks: Forks, killed: Path, short: Path) -> None:
    """160 MiB more than the program takes: too little for all rows in one batch (over 300), enough for batches of 1,024 (under 40)."""
    long_rows(short.parent)
    run, under = copied(killed, short), {"memory": 160 << 20, "environment": {"HF_DEACTIVATE_ASYNC_LOAD": "1"}}
    said = message(forks.run("run", short, "--dir", run, *LARGE, under=under), 1)
    assert said.startswith("error: stages.sft: there is not enough memory: ")
    assert "fix: lower tokens_per_batch (65536)" in said
    assert "what is finished is kept" in said
    again = forks.run("run", short, "--dir", run, *LARGE, "--set", "sft.tokens_per_batch=1024", under=under)
    assert again.status == 0, again.said
    assert "taste  skipped: done before" in again.said


def stop_twice(attempt: Attempt, moment: Path) -> None:
    assert attempt.until(moment.exists), attempt.said
    for _ in range(2):
        attempt.send(signal.SIGINT)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_that_was_saved(forks: Forks, short: Path, finished: Path) -> None:
    run = short.parent / "run"
    attempt = forks.start("run", short, "--dir", run)
    stop_twice(attempt, run / "stages" / "taste" / "final")
    assert attempt.wait() == 130, attempt.said
    assert "Traceback" not in attempt.said
    again = forks.run("run", short, "--dir", run)
    assert again.status == 0, again.said
    assert "ended without a word" not in again.said  # it said good-bye
    assert difference(content(finished), content(run)) == []


@pytest.mark.slow
def test_keeping_three_checkpoints_lets_a_run_go_on_without_the_last_one(forks: Forks, short: Path, finished: Path) -> None:
    """The newest is damaged and deleted, as the message advises; the one before it and the best parameters of its time are still there."""
    run = short.parent / "run"
    keep = ("--set", "sft.checkpoints_kept=3")
    checkpoints = run / "stages" / "sft" / "checkpoints"
    attempt = forks.start("run", short, "--dir", run, *keep)
    named = checkpoints / "latest"
    assert attempt.until(lambda: named.exists() and named.read_text() >= "step-000005"), attempt.said
    attempt.send(signal.SIGKILL)
    attempt.wait()
    assert len(list(checkpoints.glob("step-??????"))) >= 3
    newest = checkpoint.latest(checkpoints)
    assert newest is not None
    (newest / "state.json").write_text("{}")
    assert f"delete the folder {newest}" in message(forks.run("run", short, "--dir", run, *keep), 1)
    shutil.rmtree(newest)
    left = checkpoint.latest(checkpoints)
    assert left is not None
    again = forks.run("run", short, "--dir", run, *keep)
    assert again.status == 0, again.said
    assert f"sft: going on from step {int(left.name.removeprefix('step-'))} of " in again.said
    assert difference(results(finished), results(run)) == []
