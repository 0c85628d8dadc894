"""Every module imports by itself: no circles, no missing names."""

import importlib
import pkgutil

import pytest

import xwin

MODULES = [found.name for found in pkgutil.walk_packages(xwin.__path__, "xwin.")]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__ or name.rpartition(".")[2] in {"__init__"} or hasattr(importlib.import_module(name), "__path__")
