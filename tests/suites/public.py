"""AlpacaEval's public labels, which are not part of the repository: XWIN_TEST_DATA, else ../shared/data."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
ALPACA = ROOT / "alpaca_eval"
needs_public_labels = pytest.mark.skipif(not (ALPACA / "instructions.jsonl.gz").exists(), reason=f"AlpacaEval's public labels are not in {ALPACA}")


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one of the files, read without the package."""
    with gzip.open(ALPACA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
