"""A function by its name, "module:function": an installed module, or a file below the current directory."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any


class Beside(SourceFileLoader):
    """Loads a file below the current directory that is not installed; such a module is read anew each time a function of it is named."""


def source_of(name: str) -> Path | None:
    """The file that defines `module:function`; None when there is no such module. Imports at most the packages the module lies in."""
    module = name.partition(":")[0]
    spec = _installed(module)
    if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
        return Path(spec.origin)
    beside = Path.cwd().joinpath(*module.split(".")).with_suffix(".py")
    return beside if beside.is_file() else None


def digest_of(name: str) -> str | None:
    """sha256 of the file that defines `module:function`; None when there is none."""
    path = source_of(name)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def named(name: str) -> Callable[..., Any]:
    """The function.

    Raises:
        LookupError: there is no such module, or no such function in it.
        Exception: whatever the module raises when it is imported.
    """
    module, _, attribute = name.partition(":")
    path = source_of(name)
    if path is None:
        raise LookupError(f"there is no module '{module}', neither installed nor as a file below {Path.cwd()}")
    function = getattr(_imported(module, path), attribute, None)
    if not callable(function):
        raise LookupError(f"'{module}' has no function '{attribute}'")
    return function


def _installed(module: str) -> ModuleSpec | None:
    if isinstance(getattr(sys.modules.get(module), "__loader__", None), Beside):
        return None
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _imported(module: str, path: Path) -> ModuleType:
    if _installed(module) is not None:
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(module, path, loader=Beside(module, str(path)))
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[module] = found  # dataclasses and type hints look a class up by the name of its module
    try:
        with _reachable(str(Path.cwd())):
            spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[module]
        raise
    return found


@contextmanager
def _reachable(folder: str) -> Iterator[None]:
    """Modules below `folder` can be imported, after all that are installed."""
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
