"""Writing so that a crash, a full disk or a curious editor never leaves half a file that looks whole; digests of files and folders."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xwin.errors import CheckpointError, StorageError

FIXES = {
    errno.ENOSPC: "free some space and run the same command again: it goes on where it stopped",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again",
    errno.EFBIG: "a limit on the size of files is in force (ulimit -f): raise it and run the same command again",
    errno.EROFS: "the disk is read-only: choose another folder with --dir",
    errno.EACCES: "you may not write here: change the permissions or choose another folder with --dir",
    errno.EPERM: "you may not write here: change the permissions or choose another folder with --dir",
    errno.EIO: "the disk reports an error: copy what is there and use another one with --dir",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an operating system error about space or permission into one that says what to do. Other errors pass.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing. Names the file, or `path` when the error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FIXES:
            raise
        raise StorageError(f"cannot write: {error.strerror}", str(error.filename or path), FIXES[error.errno]) from error


def write_atomic(path: Path, text: str) -> None:
    """Replaces the file as a whole: a reader, also after a crash, sees the old text or the new one, never a part.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing; the old file is untouched.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            with draft.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(path)
            sync(path.parent)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Flushes a file or a folder's list of names to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file was when it was published. Size and time of change are a cheap check, the digest is the true one."""

    size: int
    """Bytes."""
    changed: int
    """Time of the last change, nanoseconds."""
    sha256: str


def seal(path: Path) -> Seal:
    """The seal of a file, flushed to the disk first."""
    sync(path)
    state = path.stat()
    return Seal(state.st_size, state.st_mtime_ns, digest_file(path))


def check_seal(path: Path, expected: Seal) -> None:
    """Passes if the file is what was sealed. Reads it only when its time of change differs.

    Raises:
        CheckpointError: it is missing, has another size or other content.
    """
    fix = "remove the folder of this stage to make it again, or bring the file back"
    if not path.is_file():
        raise CheckpointError("is missing, though its stage was finished", str(path), fix)
    state = path.stat()
    if state.st_size != expected.size:
        raise CheckpointError(f"was changed after it was finished: {state.st_size} bytes, not {expected.size}", str(path), fix)
    if state.st_mtime_ns != expected.changed and digest_file(path) != expected.sha256:
        raise CheckpointError("was changed after it was finished: its digest is another", str(path), fix)


def digest_file(path: Path) -> str:
    """sha256 of the content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """The file itself, or every file in the folder, sorted."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
