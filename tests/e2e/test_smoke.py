"""The whole chain on a tiny random model by the program itself: run, look at what is there, run again, change one setting."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from xwin.data.conversation import conversation_from_json
from xwin.data.template import VICUNA_SYSTEM, load_template
from xwin.models.heads import read_reward_stats

from .forks import Forks

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
STAGES = ("prompts", "sft", "pairs", "rm", "best", "sft2", "ppo", "report")
MODELS = ("sft", "sft2", "ppo")
ROWS = ("base", "sft", "best", "sft2", "ppo")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke") / "run"


def carry_out(run: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """The program, as a person starts it; one thread, for matrices this small gain nothing from more."""
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "run", str(RECIPE), "--dir", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XWIN_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)


@pytest.fixture(scope="module")
def first(run: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    done = carry_out(run, cache)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def stamps(run: Path) -> dict[Path, tuple[int, int]]:
    """Of every file of the stages: which file it is, and when it was last written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted((run / "stages").rglob("*")) if path.is_file()}


def lines(said: str, word: str) -> list[str]:
    """The stages of lines such as "sft  done in 0:00:01"."""
    return [line.split()[0] for line in said.splitlines() if f"  {word}" in line]


def test_every_stage_is_done_and_says_so(run: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert tuple(lines(first.stdout, "done in")) == STAGES
    assert first.stdout.rstrip().endswith(f"report: {run / 'report.html'}")
    assert "Traceback" not in first.stderr
    assert "Warning" not in first.stderr
    for row in ROWS:
        assert any(line.startswith(f"{row} ") for line in first.stdout.splitlines())


@pytest.mark.usefixtures("first")
def test_the_report_is_one_page_that_needs_nothing_else(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<html" in page
    for loaded in ('src="http', "src='http", 'href="http', "@import", "<link"):
        assert loaded not in page
    for stage in STAGES:
        assert stage in page


@pytest.mark.usefixtures("first")
def test_the_losses_fall(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    curves: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        curves.setdefault((row["stage"], row["name"]), []).append(float(row["value"]))
    assert curves["sft", "validation_loss"][-1] < 0.5 * curves["sft", "validation_loss"][0]
    losses = curves["rm", "loss"]
    half = len(losses) // 2
    assert sum(losses[half:]) < sum(losses[:half])  # a step has a handful of pairs
    assert max(curves["ppo", "ratio_gap"]) < 1e-5
    assert max(curves["ppo", "engine_gap"]) < 1e-5


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("stage", MODELS)
def test_transformers_loads_the_models_with_their_template(run: Path, stage: str) -> None:
    folder = run / "stages" / stage / "final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "2 + 2?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.<|im_end|>USER: 2 + 2? ASSISTANT:"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        assert bool(model(**ids).logits.isfinite().all())
    assert not (folder / "adapter_config.json").exists()


@pytest.mark.usefixtures("first")
def test_transformers_loads_the_reward_model_and_scores_as_best_did(run: Path) -> None:
    """The score that `best` wrote beside each kept answer, from the published folder and the text alone."""
    folder = run / "stages" / "rm" / "final"
    model, template, stats = AutoModelForSequenceClassification.from_pretrained(folder), load_template(folder, "vicuna"), read_reward_stats(folder)
    rows = [json.loads(line) for line in (run / "stages" / "best" / "conversations.jsonl").read_text().splitlines()]
    for row in rows[:8]:
        tokens = template.render(conversation_from_json(row, "").messages).tokens
        with torch.no_grad():
            raw = float(model(torch.tensor([tokens])).logits[0, 0])
        assert (raw - stats.mean) / stats.std == pytest.approx(row["meta"]["score"], abs=1e-3)


@pytest.mark.usefixtures("first")
def test_the_facts_as_json_have_the_shape_that_was_promised(forks: Forks, run: Path) -> None:
    done = forks.run("report", run, "--json")
    assert done.status == 0, done.said
    facts: dict[str, Any] = json.loads(done.said, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(facts) == {"recipe", "seed", "stages", "table"}
    assert (facts["recipe"], facts["seed"]) == ("smoke", 0)
    assert tuple(facts["stages"]) == STAGES
    for name, stage in facts["stages"].items():
        assert set(stage) == {"kind", "status", "metrics"}
        assert stage["status"] == "published"
        assert all(isinstance(value, float | int) for value in stage["metrics"].values()), name
    assert {stage: facts["stages"][stage]["kind"] for stage in ("sft2", "rm", "ppo")} == {"sft2": "sft", "rm": "reward_model", "ppo": "rl"}
    for row in facts["table"]:
        assert set(row) == {"model", "metric", "value", "low", "high", "n"}
        if row["low"] is None:
            assert (row["high"], row["n"]) == (None, 1), "one observation has no interval"
        else:
            assert row["low"] <= row["value"] <= row["high"]
    found = {(row["model"], row["metric"]): row for row in facts["table"]}
    for model in ROWS:
        assert found[model, "accuracy"]["n"] == 16
        assert {(model, f"accuracy/{family}") for family in ("chain_sum", "syllogism")} <= found.keys()
        assert (model, "length") in found
        assert ((model, "win_rate") in found) == (model != "sft")
    assert {("sft", "kl"), ("sft2", "kl"), ("ppo", "kl"), ("reward model", "rm_accuracy"), ("reward model", "longer_wins")} <= found.keys()


def test_again_skips_everything_in_seconds_and_writes_nothing(run: Path, cache: Path, first: subprocess.CompletedProcess[str]) -> None:
    before, begun = stamps(run), time.monotonic()
    again = carry_out(run, cache)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - begun < 20
    assert tuple(lines(again.stdout, "skipped:")) == STAGES
    assert lines(again.stdout, "done in") == []
    assert stamps(run) == before
    assert _table(again.stdout) == _table(first.stdout)


def _table(said: str) -> list[str]:
    """The final table."""
    rows = said.splitlines()
    start = max(i for i, line in enumerate(rows) if line.startswith("model "))
    return rows[start : start + 2 + len(ROWS) + 1]


@pytest.mark.usefixtures("first")
def test_one_changed_setting_of_ppo_runs_ppo_and_what_needs_it(forks: Forks, run: Path) -> None:
    before = stamps(run)
    command = (RECIPE, "--dir", run)
    change = ("--set", "ppo.objective.clip=0.1")
    plan = forks.run("plan", *command, "--json", *change)
    rows = {row["stage"]: row for row in json.loads(plan.said)["stages"]}
    assert {name for name, row in rows.items() if row["status"] == "run"} == {"ppo", "report"}
    assert "objective.clip was 0.2, is 0.1" in rows["ppo"]["why"]
    done = forks.run("run", *command, *change)
    assert done.status == 0, done.said
    assert lines(done.said, "done in") == ["ppo", "report"]
    kept = [path for path in before if path.relative_to(run / "stages").parts[0] not in {"ppo", "report"}]
    after = stamps(run)
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    back = forks.run("run", *command)
    assert lines(back.said, "done in") == []  # what was superseded comes back
    assert {path: stamp for path, stamp in stamps(run).items() if path in before} == before
