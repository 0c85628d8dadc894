"""Data that a recipe names and no stage makes: a file, a pattern, a data set folder, or a data set of the hub."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from xwin.data.files import named_dataset
from xwin.run.storage import digest_file

HUB = "hf:"


def data_path(text: str, folder: Path) -> Path:
    """Where the data lie; of a data set of the hub its name.

    Args:
        text: as the recipe writes it: `./x.jsonl`, `./x/*.jsonl`, `./folder`, `./folder:split`, `hf:owner/name`.
        folder: what `./x` is relative to.
    """
    return Path(text) if text.startswith(HUB) else (folder / text).absolute()


def data_files(path: Path) -> list[Path]:
    """The files that a path or pattern means; none where there is nothing, or for a data set of the hub."""
    text = str(path)
    if glob.has_magic(text) and not path.exists():  # Path.glob takes no absolute pattern
        return [found for name in sorted(glob.glob(text, recursive=True)) if (found := Path(name)).is_file()]  # noqa: PTH207
    named = named_dataset(text)
    if named is not None and named.folder is not None:
        return sorted(found for found in named.folder.rglob("*") if found.is_file() and not found.name.startswith("."))
    return [path] if path.is_file() else []


def data_digest(path: Path) -> str:
    """What names the content: `file:` and the sha256 of one file, `files:` and a digest of several, or `hub:` and the name of a data set there,
    which only the stage that reads it fetches."""
    files = data_files(path)
    if files == [path]:
        return f"file:{digest_file(path)}"
    if not files:
        return f"hub:{path}"
    lines = "\n".join([path.name, *(f"{file.name} {digest_file(file)}" for file in files)])
    return f"files:{hashlib.sha256(lines.encode(errors='surrogateescape')).hexdigest()}"
