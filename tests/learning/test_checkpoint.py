"""Checkpoints: bitwise round trips, and every way in which a disk or a kill can spoil one."""

import gc
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from xwin.errors import CheckpointError, StorageError, TrainingStopped
from xwin.learning import checkpoint


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=random)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.95))
    for _ in range(steps):
        model(torch.randn(4, 5, generator=random)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def small(step: int) -> dict:
    return {"model": {"w": torch.full((3, 4), float(step)), "b": torch.arange(step)}}


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path / "checkpoints", 4, small(4), {"rows": 17})


def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    tensors = {
        "fp32": torch.randn(3, 4, generator=random),
        "odd": torch.tensor([3.4e38, -3.4e38, -0.0, 1e-45]),
        "bf16": torch.randn(5, generator=random).bfloat16(),
        "fp16": torch.randn(5, generator=random).half(),
        "fp64": torch.randn(2, generator=random).double(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor(True),
        "scalar": torch.tensor(3.25),
        "empty": torch.zeros(0, 3),
        "empty too": torch.zeros(0, 3),
        "turned": torch.randn(4, 3, generator=random).t(),
        "part": torch.randn(100, generator=random)[3:7],
    }
    tensors["tied"] = tensors["fp32"]
    into = {name: torch.zeros_like(value) for name, value in tensors.items()}
    checkpoint.load(checkpoint.save(tmp_path, 1, {"all": tensors}, {}), {"all": into})
    for name, value in tensors.items():
        assert bits(into[name]) == bits(value), name
        assert into[name].dtype == value.dtype


def test_a_model_and_its_optimizer_go_on_exactly_as_if_never_stopped(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    path = checkpoint.save(tmp_path, 3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, {})
    other, fresh = trained(0, seed=9)
    into = {"model": other.state_dict(), "optimizer": fresh.state_dict()}
    checkpoint.load(path, into)
    fresh.load_state_dict(into["optimizer"])
    assert fresh.param_groups[0]["betas"] == (0.8, 0.95)
    for each, opt in ((model, optimizer), (other, fresh)):
        each(torch.ones(2, 5)).sum().backward()
        opt.step()
    assert [bits(p) for p in other.parameters()] == [bits(p) for p in model.parameters()]


def test_an_optimizer_that_has_moments_gets_them_in_place(tmp_path: Path) -> None:
    _, optimizer = trained(3)
    path = checkpoint.save(tmp_path, 3, {"optimizer": optimizer.state_dict()}, {})
    _, other = trained(1, seed=5)
    moments = [state["exp_avg"] for state in other.state.values()]
    checkpoint.load(path, {"optimizer": other.state_dict()})
    assert [bits(m) for m in moments] == [bits(state["exp_avg"]) for state in optimizer.state.values()]


def test_scalars_and_state_keep_value_and_type(tmp_path: Path) -> None:
    values = {
        "f": 0.1 + 0.2,
        "big": 2**70,
        "inf": float("inf"),
        "none": None,
        "yes": True,
        "text": "é",
        "pair": (1, 2.0),
        "row": [1, (2,)],
        3: {"x": 1},
    }
    state = {"kl": 0.1 + 0.2, "order": [3, 1], "nested": {"a": None}}
    into: dict = {"values": {}}
    assert checkpoint.load(checkpoint.save(tmp_path, 1, {"values": values}, state), into) == state
    assert into["values"] == values


def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a/b: a set cannot be saved"):
        checkpoint.save(tmp_path, 1, {"a": {"b": {1}}}, {})
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        checkpoint.save(tmp_path, step, small(step), {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000006", "step-000008"]
    assert (tmp_path / "latest").read_text() == "step-000008\n"
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000008"


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, small(4), {"try": 1})
    path = checkpoint.save(tmp_path, 4, small(4), {"try": 2})
    assert checkpoint.load(path, small(4)) == {"try": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000004"]


def test_checkpoints_after_the_saved_step_are_of_another_history(tmp_path: Path) -> None:
    for step in (2, 9, 3):
        checkpoint.save(tmp_path, step, small(step), {}, keep=3)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000003"
    assert not (tmp_path / "step-000009").exists()


@pytest.mark.parametrize("every", [1, 2, 5, 7])
def test_with_a_reach_there_always_is_one_that_far_back_and_never_more_than_three(tmp_path: Path, every: int) -> None:
    for step in range(0, 40, every):
        checkpoint.save(tmp_path, step, small(step), {}, reach=4)
        there = checkpoint.steps(tmp_path)
        assert there[0] <= max(step - 4, 0)
        assert there[-1] == step
        assert len(there) <= 3
        assert checkpoint.before(tmp_path, max(step - 4, 0)) == tmp_path / f"step-{there[0]:06d}"
    with pytest.raises(CheckpointError, match="no checkpoint of step 1 or before"):
        checkpoint.before(tmp_path, 1)


def test_going_on_from_an_older_one_removes_those_after_it(tmp_path: Path) -> None:
    """A rollback was killed between naming the old checkpoint `latest` and removing the others."""
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, small(step), {}, keep=3)
    (tmp_path / "latest").write_text("step-000004\n")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000004"
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 1, small(1), {})
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(TrainingStopped, match="'a/b' holds a number that is not finite"):
            checkpoint.save(tmp_path, 2, {"a": {"b": torch.tensor([1.0, bad, 2.0])}}, {})
    assert checkpoint.latest(tmp_path) == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_states_are_those_of_all_that_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, small(step), {"best": step}, keep=2)
    assert checkpoint.states(tmp_path) == [{"best": 4}, {"best": 6}]


def test_latest_of_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "missing") is None
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("text", [None, "", "step-000099\n", "../../etc", "\x00\xff"])
def test_without_a_usable_latest_the_highest_step_is_taken(tmp_path: Path, text: str | None) -> None:
    for step in (2, 4):
        checkpoint.save(tmp_path, step, small(step), {}, keep=2)
    (tmp_path / "latest").unlink() if text is None else (tmp_path / "latest").write_text(text)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000004"


def test_leftovers_of_a_kill_are_cleared_and_never_taken(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 4, small(4), {})
    shutil.copytree(good, tmp_path / "step-000006.tmp")
    (tmp_path / ".latest.123.tmp").write_text("step-0000")
    (tmp_path / "step-000008").mkdir()  # no DIGESTS: not one that `save` renamed
    assert checkpoint.latest(tmp_path) == good
    assert not (tmp_path / "step-000006.tmp").exists()
    assert not (tmp_path / ".latest.123.tmp").exists()


def test_a_kill_between_the_renames_of_a_replaced_checkpoint_loses_nothing(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 4, small(4), {"rows": 3})
    good.rename(tmp_path / "step-000004.old")
    assert checkpoint.latest(tmp_path) == good
    assert checkpoint.load(good, small(4)) == {"rows": 3}


@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_at_any_length_is_refused_by_name(saved: Path, tenth: int) -> None:
    for file in files(saved):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(saved, small(4))
        assert file.name in caught.value.where
        assert f"delete the folder {saved}" in caught.value.fix
        file.write_bytes(whole)
    assert checkpoint.load(saved, small(4)) == {"rows": 17}


def test_a_flipped_bit_anywhere_is_refused(saved: Path) -> None:
    for file in files(saved):
        whole = file.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
            with pytest.raises(CheckpointError):
                checkpoint.load(saved, small(4))
        file.write_bytes(whole)


def test_a_missing_or_an_added_file_is_refused(saved: Path) -> None:
    for file in files(saved):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            checkpoint.load(saved, small(4))
        file.write_bytes(whole)
    (saved / "shard-00002.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"shard-00002.*not listed"):
        checkpoint.load(saved, small(4))


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-000001"):
        checkpoint.load(tmp_path / "step-000001", {})


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ({"model": {"w": torch.zeros(3, 5), "b": torch.arange(4)}}, r"model/w is float32 \[3, 4\] in the checkpoint, float32 \[3, 5\] here"),
        ({"model": {"w": torch.zeros(3, 4).bfloat16(), "b": torch.arange(4)}}, "bfloat16"),
        ({"model": {"w": torch.zeros(3, 4)}}, "model/b is a tensor in the checkpoint and not here"),
        ({"model": {"w": torch.zeros(3, 4), "b": torch.arange(4), "c": torch.zeros(1)}}, "model/c is not in the checkpoint"),
        ({"model": {"w": torch.zeros(3, 4), "b": torch.arange(4)}, "x": {}}, "x is not in the checkpoint"),
        ({"model": torch.zeros(1)}, "model"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(saved: Path, into: dict, message: str) -> None:
    before = repr(into)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved, into)
    assert repr(into) == before


def test_nothing_of_a_checkpoint_is_pickled(saved: Path) -> None:
    assert {file.suffix for file in files(saved)} == {".safetensors", ".json", ""}
    assert json.loads((saved / "state.json").read_text())["step"] == 4


def test_digests_are_in_the_format_of_sha256sum(saved: Path) -> None:
    assert subprocess.run(["sha256sum", "-c", "--quiet", "DIGESTS"], cwd=saved, check=False).returncode == 0


def test_saving_and_loading_warns_of_nothing_and_is_quick(tmp_path: Path) -> None:
    tensors = {"model": {f"layer{i}": torch.zeros(100, 500) for i in range(100)}}  # 20 MB
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started = time.perf_counter()
        path = checkpoint.save(tmp_path, 1, tensors, {})
        checkpoint.load(path, tensors)
    assert time.perf_counter() - started < 5  # 0.15 s alone; other work may share the machine


def limited(size: int, folder: Path) -> StorageError | None:
    """Saves step 6 in a forked process that may not write more than `size` bytes to a file."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            checkpoint.save(folder, 6, {"model": {"w": torch.ones(5000)}}, {"rows": list(range(9000))})
        except StorageError as error:
            os.write(writer, f"{error.what}|{error.fix}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        text = said.read()
    return StorageError(*text.split("|")) if text else None


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 4, small(4), {"rows": 1})
    for size in (0, 10, 1000, 21000, 40000):  # before, in and after the tensors
        error = limited(size, tmp_path)
        assert error is not None and "File too large" in error.what, size
        assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000004"]
        assert checkpoint.latest(tmp_path) == good
        assert checkpoint.load(good, small(4)) == {"rows": 1}
    assert limited(10**7, tmp_path) is None
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000006"


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here; the limit on file sizes above covers the rest")
    try:
        good = checkpoint.save(tmp_path, 4, small(4), {"rows": 1})
        with pytest.raises(StorageError, match=r"(?s)No space left.*fix: free some space"):
            checkpoint.save(tmp_path, 6, {"model": {"w": torch.ones(100_000)}}, {})
        assert checkpoint.latest(tmp_path) == good
        assert checkpoint.load(good, small(4)) == {"rows": 1}
        checkpoint.save(tmp_path, 6, small(6), {})  # the half-written one does not hold the space
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def saving(folder: Path, step: int, writer: int) -> None:
    """Saves one checkpoint after another and says so, until killed."""
    while True:
        step += 1
        tensors = {"model": {f"w{i}": torch.full((200, 50), float(step)) for i in range(20)}}
        checkpoint.save(folder, step, tensors, {"step": step})
        os.write(writer, f"{step}\n".encode())


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = 0
    for wait in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            saving(tmp_path, done, writer)
        os.close(writer)
        with os.fdopen(reader) as said:
            said.readline()
            time.sleep(wait * 0.0037)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            reported = max([done + 1, *(int(line) for line in said)])
        path = checkpoint.latest(tmp_path)
        assert path is not None
        into: dict = {"model": {}}
        done = checkpoint.load(path, into)["step"]
        assert reported <= done <= reported + 1  # what was said to be saved is there
        assert all(torch.equal(value, torch.full((200, 50), float(done))) for value in into["model"].values())
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.old"))


def test_an_interrupt_inside_the_library_comes_out_as_itself(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 4, small(4), {})

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # an exception inside a callback of the collector, which hypothesis has, is printed and lost
    try:
        for delay in (0.001, 0.004, 0.016):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(KeyboardInterrupt):
                for _ in range(1000):
                    checkpoint.save(tmp_path, 6, small(6), {})
            path = checkpoint.latest(tmp_path)
            assert path is not None and path >= good
            checkpoint.verify(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def test_a_checkpoint_of_one_process_is_read_by_two_each_its_own_rows(tmp_path: Path) -> None:
    split, uneven = torch.arange(24.0).reshape(6, 4), torch.arange(5.0)
    path = checkpoint.save(tmp_path / "checkpoints", 4, {"model": {"split": split, "uneven": uneven, "whole": torch.ones(3)}}, {"rows": 17})
    command = [sys.executable, str(Path(__file__).with_name("sharded.py")), str(path), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == {"state": {"rows": 17}, "split": split[:3].tolist(), "uneven": uneven[:3].tolist(), "whole": [1.0] * 3}
    assert second == {"state": {"rows": 17}, "split": split[3:].tolist(), "uneven": uneven[3:].tolist(), "whole": [1.0] * 3}


def test_a_hostile_file_in_a_checkpoint_is_refused_before_it_is_opened(saved: Path) -> None:
    """Settings nested so deep that reading them is an error of another kind, and a shard whose header asks for 2**62 bytes."""
    hostile = {"state.json": b"[" * 1_000_000, "shard": (2**62).to_bytes(8, "little") + b"{}"}
    for file in files(saved):
        content = hostile.get(file.name.partition("-")[0])
        if content is not None:
            whole = file.read_bytes()
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match="its digest is not the one that was written"):
                checkpoint.load(saved, small(4))
            file.write_bytes(whole)
    assert checkpoint.load(saved, small(4)) == {"rows": 17}


def test_the_last_good_checkpoint_is_there_until_the_next_is_complete(tmp_path: Path) -> None:
    """Every operation on files of a second save is preceded by a look: some checkpoint can always be loaded."""
    checkpoint.save(tmp_path, 4, small(4), {"rows": 4})
    script = "\n".join(
        [
            "import sys; from pathlib import Path; from xwin.learning import checkpoint; import torch",
            "folder, looks = Path(sys.argv[1]), 0",
            "def look(event, args):",
            "    global looks",
            "    if event in {'os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree'} and str(folder) in str(args[0]):",
            "        found = [p for p in folder.glob('step-??????') if (p / 'DIGESTS').exists()]",
            "        assert found, (event, args)",
            "        [checkpoint.verify(p) for p in found]; looks += 1",
            "sys.addaudithook(look)",
            "checkpoint.save(folder, 6, {'model': {'w': torch.ones(3, 4)}}, {'rows': 6})",
            "print(looks)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000006"


def test_what_else_checkpoints_speak_of_is_known_for_each_that_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, small(step), {"best": step}, keep=2)
    assert checkpoint.states(tmp_path) == [{"best": 4}, {"best": 6}]
    (tmp_path / "step-000004" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="step-000004"):
        checkpoint.states(tmp_path)
