"""Run directories: begun, published, superseded, brought back, locked; and what happens when the disk says no."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xwin.errors import CheckpointError, Failure, RunBusy, UserError
from xwin.run.directory import RunDirectory, StageDirectory, StageRecord
from xwin.run.events import Event

FILES = {"final": "final", "rows": "rows.jsonl"}


def record(fingerprint: str = "a" * 64) -> StageRecord:
    return StageRecord("sft", "sft", fingerprint, "running", {"base": "model:1"}, {"lr": 1e-5}, started=time.time())


def stage(path: Path) -> StageDirectory:
    return RunDirectory(path / "run").stage("sft", FILES)


def fill(directory: StageDirectory, text: str = "weights") -> None:
    directory.out("final").mkdir()
    (directory.out("final") / "config.json").write_text("{}")
    (directory.out("final") / "model.safetensors").write_text(text)
    directory.out("rows").write_text('{"a": 1}\n')


def published(path: Path, fingerprint: str = "a" * 64, text: str = "weights") -> StageDirectory:
    directory = stage(path)
    directory.begin(record(fingerprint))
    fill(directory, text)
    directory.publish({"loss": 1.5}, seconds=2.0)
    return directory


def test_a_published_stage_says_what_it_made(tmp_path: Path) -> None:
    found = published(tmp_path).record()
    assert found is not None
    assert found.status == "published"
    assert found.metrics == {"loss": 1.5}
    assert set(found.outputs) == {"final", "rows"}
    assert set(found.seals) == {"final/config.json", "final/model.safetensors", "rows.jsonl"}


def test_equal_content_has_equal_digests_whatever_the_time(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a").record(), published(tmp_path / "b").record()
    other = published(tmp_path / "c", text="different").record()
    assert first and second and other
    assert first.outputs == second.outputs
    assert first.outputs["final"] != other.outputs["final"]
    assert first.outputs["rows"] == other.outputs["rows"]


def test_publishing_removes_checkpoints_and_keeps_the_rest(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    directory.begin(record())
    (directory.checkpoints / "step-000400").mkdir(parents=True)
    directory.events.write_text("")
    fill(directory)
    directory.publish({}, seconds=1.0)
    assert not directory.checkpoints.exists()
    assert directory.events.exists()


def test_a_stage_without_its_output_is_not_published(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    directory.begin(record())
    directory.out("rows").write_text("")
    with pytest.raises(Failure, match="without its output 'final'"):
        directory.publish({}, seconds=1.0)
    found = directory.record()
    assert found and found.status == "running"


def test_the_same_fingerprint_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    first = directory.begin(record())
    (directory.checkpoints / "step-000001").mkdir(parents=True)
    assert directory.begin(record()) == first
    assert (directory.checkpoints / "step-000001").exists()


def test_another_fingerprint_moves_the_old_folder_away_and_back(tmp_path: Path) -> None:
    directory = published(tmp_path, "a" * 64)
    assert directory.begin(record("b" * 64)).status == "running"
    assert (tmp_path / "run" / "stages" / ".old" / "sft-aaaaaaaa" / "manifest.json").exists()
    assert not directory.out("final").exists()
    back = directory.begin(record("a" * 64))
    assert back.status == "published"
    assert directory.out("final").exists()
    directory.verify()


def test_an_unfinished_superseded_stage_does_not_come_back_as_done(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    directory.begin(record("a" * 64))
    directory.begin(record("b" * 64))
    assert directory.begin(record("a" * 64)).status == "running"


def test_a_touched_file_with_equal_content_passes(tmp_path: Path) -> None:
    directory = published(tmp_path)
    os.utime(directory.out("rows"), (1, 1))
    directory.verify()


@pytest.mark.parametrize("text", ["tampered", "short"])
def test_a_changed_artefact_is_named(tmp_path: Path, text: str) -> None:
    directory = published(tmp_path, text="original")
    weights = directory.out("final") / "model.safetensors"
    weights.write_text(text)
    os.utime(weights, (1, 1))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*changed after it was finished"):
        directory.verify()


def test_a_missing_artefact_is_named(tmp_path: Path) -> None:
    directory = published(tmp_path)
    directory.out("rows").unlink()
    with pytest.raises(CheckpointError, match=r"rows\.jsonl.*is missing"):
        directory.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "sft"}', '{"seals": {"a": 3}}'])
def test_a_broken_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    directory = published(tmp_path)
    directory.manifest.write_text(text)
    with pytest.raises(CheckpointError, match=r"(?s)manifest\.json.*remove the folder"):
        directory.record()


def test_an_output_that_the_stage_does_not_make_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="not 'nope'"):
        stage(tmp_path).out("nope")


def test_events_are_gathered_from_published_stages_in_plan_order(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for name, status in (("b", "published"), ("a", "published"), ("c", "running")):
        directory = run.stage(name, {})
        directory.begin(StageRecord(name, "sft", name * 64, "running", {}, {}, started=0.0))
        directory.events.write_text(Event(0.0, name, 1, "loss", 1.0).to_json() + "\n")
        if status == "published":
            directory.publish({}, seconds=0.0)
    run.gather_events(["a", "b", "c"])
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["a", "b"]


HOLD = """
import sys
from pathlib import Path
from xwin.run.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("held", flush=True)
    input()
"""


def test_a_second_process_is_told_who_works_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(RunBusy, match=rf"by process {holder.pid} on ") as caught, run.locked():
        pass
    assert caught.value.exit_code == 2
    holder.kill()
    holder.communicate()
    with run.locked():  # the lock of a dead process is free
        assert json.loads((run.path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (run.path / ".lock.json").exists()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run"), RunDirectory(tmp_path).locked():
        pass
    with pytest.raises(UserError, match="is a file"), RunDirectory(tmp_path / "notes.txt").locked():
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
