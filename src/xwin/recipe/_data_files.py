"""Data that a recipe names and no stage makes: a file, a pattern, a data set folder, or a data set of the hub."""

from __future__ import annotations

from pathlib import Path

from xwin.data.files import data_digest, data_files, named_dataset

__all__ = ["HUB", "data_digest", "data_files", "data_path", "unpinned"]

HUB = "hf:"


def data_path(text: str, folder: Path) -> Path:
    """Where the data lie; of a data set of the hub its name.

    Args:
        text: as the recipe writes it: `./x.jsonl`, `./x/*.jsonl`, `./folder`, `./folder:split`, `hf:owner/name[/folder]@revision`.
        folder: what `./x` is relative to.
    """
    return Path(text) if text.startswith(HUB) else (folder / text).absolute()


def unpinned(text: str) -> tuple[str, str]:
    """What is wrong with a data set of the hub that names no revision, and how it is mended; ("", "") where nothing is.

    Example: unpinned("hf:owner/name:train")[1] is "write hf:owner/name@REVISION:train, the revision a commit of the data set"
    """
    named = named_dataset(text) if text.startswith(HUB) else None
    if named is None or named.folder is not None or named.revision is not None:
        return "", ""
    pinned = f"{HUB}{named.repo}{'/' if named.inside else ''}{named.inside}@REVISION" + (f":{named.split}" if named.split else "")
    return f"a data set of the hub needs a pinned revision in a recipe: {text}", f"write {pinned}, the revision a commit of the data set"
