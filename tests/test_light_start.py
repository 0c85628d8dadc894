"""The light half starts without torch, and fast enough to answer `--help` at once."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "matplotlib", "scipy", "vllm", "ray")


def loaded(code: str) -> list[str]:
    """Heavy packages in sys.modules of a fresh process after `code`."""
    report = f"{code}\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["xwin", "xwin.cli.main", "xwin.recipe.schema", "xwin.recipe.plan", "xwin.run.directory", "xwin.run.console"])
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}") == []


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['xwin', '--help']\nfrom xwin.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    assert loaded(code) == []


def test_the_list_of_kinds_loads_nothing_heavy() -> None:
    assert loaded("from xwin.recipe.explain import all_kinds; assert all_kinds()") == []
