"""Data sets in the sense of the `datasets` library: folders that it saved, folders of data files, data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwin.data._columns import arrow_lines
from xwin.errors import DataError, MissingExtra
from xwin.run.storage import digest_file

HUB_FILES = ["*.parquet", "*.arrow", "*.json", "*.jsonl", "*.csv", "*.tsv", "*.gz", "*.zst", "README.md"]
BATCH = 64
"""Rows that are made at once."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a source means.  Example: `hf:owner/name@main:train` is Named("hf:owner/name@main:train", None, "owner/name", "", "main", "train")"""

    source: str
    """As written."""
    folder: Path | None
    """On this machine; None = on the hub."""
    repo: str
    inside: str
    """The folder of the repository that is the data set, where it holds several; empty = the whole of it."""
    revision: str | None
    split: str | None


def named_dataset(source: str) -> Named | None:
    """What the source means, or None if it names no data set: `folder[:split]`, `hf:folder[:split]`, `hf:owner/name[/folder][@revision][:split]`."""
    hub, name = source.startswith("hf:"), source.removeprefix("hf:")
    head, colon, split = name.rpartition(":")
    if not colon or "/" in split or Path(name).exists():
        head, split = name, ""
    if Path(head).is_dir():
        return Named(source, Path(head), "", "", None, split or None)
    if not hub:
        return None
    name, _, revision = head.partition("@")
    repo, inside = ("/".join(part) for part in (name.split("/")[:2], name.split("/")[2:]))
    return Named(source, None, repo, inside, revision or None, split or None)


def dataset_folder(named: Named) -> Path:
    """The folder of the data set, fetched from the hub if it lies there.

    Raises:
        DataError: there is no such data set, or the hub cannot be reached.
    """
    if named.folder is None and named.repo.startswith((".", "/", "~")):
        raise DataError("no such folder", named.source)
    folder = named.folder or _fetch(named) / named.inside
    if not folder.is_dir():
        raise DataError(f"the data set has no folder '{named.inside}'", named.source, "look at its files on the hub")
    return folder


def _fetch(named: Named) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    transport: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library that the hub's client uses
    try:
        return Path(snapshot_download(named.repo, repo_type="dataset", revision=named.revision, allow_patterns=HUB_FILES))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "the hub has no such data set or revision, or it is not public"
        raise DataError(what, named.source, "check the name; `hf auth login` for a gated data set; ./folder for a local one") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, transport) as error:
        what = "the Hugging Face hub cannot be reached, and the data set is not in its cache"
        raise DataError(what, named.source, "check the network and try again, or give a local ./folder") from error


def dataset_digest(folder: Path, split: str | None) -> str:
    """64 hex digits that name the content of a data set folder and the split that is read.

    Raises:
        DataError: the folder holds no files.
    """
    digest = hashlib.sha256((split or "").encode())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DataError("is a folder without files", str(folder), "name a file, a pattern such as data/*.jsonl, or a data set folder")
    for path in files:
        digest.update(f"\n{path.relative_to(folder)} {digest_file(path)}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def dataset_rows(folder: Path, split: str | None, source: str) -> Iterator[bytes]:
    """A line of JSON for each row.

    Raises:
        DataError: the library cannot read it, there is no such split, or one has to be named.
        MissingExtra: without the package `datasets`.
    """
    try:
        import datasets
        import pyarrow as pa
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise MissingExtra("datasets", "data") from None
    try:
        found: Any
        if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            _require_inside(folder, _saved_files(folder), source)
            found = datasets.load_from_disk(str(folder))
        else:
            builder = datasets.load_dataset_builder(str(folder))
            _require_inside(folder, [file for files in (builder.config.data_files or {}).values() for file in files], source)
            found = builder.as_streaming_dataset()
        for batch in _chosen(found, split, source).with_format("arrow").iter(BATCH):
            yield from arrow_lines(batch)
    except (DatasetsError, pa.ArrowException, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        fix = "a folder of files that the library cannot join is read by a pattern, each file by itself: folder/*.jsonl"
        raise DataError(f"the data set cannot be read: {said}", source, fix) from error


def _saved_files(folder: Path) -> Iterator[str]:
    """The files that a saved data set says it consists of."""
    for state in folder.rglob("state.json"):
        for entry in json.loads(state.read_text(encoding="utf-8")).get("_data_files", ()):
            yield str(state.parent / entry["filename"])
    if (folder / "dataset_dict.json").is_file():
        yield from (str(folder / split) for split in json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])


def _require_inside(folder: Path, files: Iterable[str], source: str) -> None:
    """Passes if all files lie in the folder: its README or settings, which somebody else wrote, may name any file or address.

    Raises:
        DataError: names the one that does not.
    """
    for file in files:
        if "://" in file or not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):  # noqa: PTH100 - links may lead elsewhere
            raise DataError(f"names a file outside its folder: {file}", source, "name that file yourself, if you want to read it")


def _chosen(found: Any, split: str | None, source: str) -> Any:
    splits = list(found) if isinstance(found, Mapping) else []
    if split is None and len(splits) > 1:
        raise DataError(f"has the splits {', '.join(splits)}", source, f"name one: {source}:{splits[0]}")
    if split is not None and split not in splits:
        what = f"has no split {split!r}, but {', '.join(splits)}" if splits else "has no splits"
        raise DataError(what, source, f"name one: {source.rpartition(':')[0]}:{splits[0]}" if splits else "leave it out")
    return found[split or splits[0]] if splits else found
