"""`make audit` says what pip-audit found, and does not call silence a good sign."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit"
GOOD = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {"name": "torch", "version": "2.13.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.13.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found: torch (2.13.0)"}


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ([GOOD, GOOD], 0, "2 packages, no known vulnerability"),
        ([GOOD, BAD], 1, "torch 2.13.0: PYSEC-1, mended in 2.13.1"),
        ([BAD, UNKNOWN], 1, "PYSEC-1"),
        ([GOOD, UNKNOWN], 3, "knows nothing of 1 of 2 packages; the first: not found: torch (2.13.0)"),
        (None, 3, "could not be asked: ConnectionError: no route"),
    ],
)
def test_each_answer_has_its_exit_code(answer: list[dict] | None, code: int, says: str, tmp_path: Path) -> None:
    """The script as it is, beside a program that answers as pip-audit does: the real one needs a network."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "audit").write_text(SCRIPT.read_text())
    auditor = tmp_path / ".venv-audit" / "bin" / "pip-audit"
    auditor.parent.mkdir(parents=True)
    said = f"print({json.dumps(json.dumps({'dependencies': answer}))})" if answer else "import sys; sys.exit('ConnectionError: no route')"
    auditor.write_text(f"#!{sys.executable}\n{said}\n")
    auditor.chmod(0o755)
    done = subprocess.run([sys.executable, tmp_path / "scripts" / "audit"], capture_output=True, text=True, check=False)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
