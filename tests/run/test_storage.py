"""Atomic writes and seals, and what the operating system's refusals turn into."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xwin.errors import CheckpointError, StorageError
from xwin.run.storage import check_seal, digest_file, files_of, seal, storage_errors, write_atomic


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "one")
    write_atomic(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert list(tmp_path.iterdir()) == [path]


LIMITED = """
import resource, sys
from pathlib import Path
from xwin.errors import StorageError
from xwin.run.storage import write_atomic
path = Path(sys.argv[1])
write_atomic(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(path, "x" * 5000)
except StorageError as error:
    print(error)
"""


def test_a_write_beyond_a_limit_keeps_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "ulimit" in done.stdout
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_error_with_a_fix() -> None:
    with pytest.raises(StorageError, match="free some space") as caught, storage_errors(Path("runs/x")), Path("/dev/full").open("w") as out:
        out.write("x")
    assert caught.value.exit_code == 1
    assert caught.value.where == "runs/x"


@pytest.mark.parametrize(("number", "fix"), [(errno.EROFS, "read-only"), (errno.EACCES, "permissions"), (errno.EDQUOT, "quota")])
def test_each_refusal_has_its_fix(number: int, fix: str) -> None:
    with pytest.raises(StorageError, match=fix), storage_errors(Path("runs/x")):
        raise OSError(number, os.strerror(number))


def test_errors_that_are_not_about_storage_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "missing").read_text()


def test_a_seal_notices_another_content_of_equal_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    made = seal(path)
    check_seal(path, made)
    path.write_text("two")
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="digest"):
        check_seal(path, made)


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_files_of_a_folder_are_sorted_and_nested(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("")
    (tmp_path / "a").write_text("")
    assert files_of(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    assert files_of(tmp_path / "a") == [tmp_path / "a"]
    assert files_of(tmp_path / "missing") == []
