"""Keys are planted in the environment, a scorer and a recipe that give them away are run, and every byte that is left is searched for them."""

import json
from pathlib import Path
from types import MappingProxyType

import pytest

from .forks import Attempt, Forks

KEYS = MappingProxyType(
    {
        "HF_TOKEN": "hf_PLANTEDplantedPLANTEDplanted0001",
        "OPENAI_API_KEY": "sk-PLANTEDplantedPLANTEDplanted0002",
        "WANDB_API_KEY": "9c71f00dfeed9c71f00dfeed9c71f00dfeed0003",
    }
)

LEAKY = '''
"""A scorer that fails for one answer in two, and says with which key."""
import os

def score(prompt, answers):
    if prompt.id.endswith("1"):
        raise PermissionError(f"401 for {os.environ['OPENAI_API_KEY']} and {os.environ['HF_TOKEN']}")
    return [float(len(answer)) for answer in answers]
'''

RECIPE = """\
# pasted by mistake: sk-PLANTEDplantedPLANTEDplanted0002
name: leaky
models:
  base: {path: "random:2x64"}
stages:
  best:
    kind: best_of_n
    policy: base
    prompts: ./asked.jsonl
    n: 16
    sampling: {max_tokens: 64}
    scorer: {kind: function, function: "leaky:score", on_failure: mask}
  sft: {kind: sft, init: base, data: best, tokens_per_step: 512, epochs: 4}
trackers: [{kind: tensorboard}, {kind: wandb}]
"""


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    (tmp_path / "leaky.py").write_text(LEAKY)
    asked = [{"id": f"q{i}", "messages": [{"role": "user", "content": f"Say {i}."}]} for i in range(4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "leaky.yaml").write_text(RECIPE)
    return tmp_path / "leaky.yaml"


def run(forks: Forks, leaky: Path, *sets: str) -> Attempt:
    under = {"environment": dict(KEYS), "folder": str(leaky.parent)}
    return forks.run("run", leaky, "--dir", leaky.parent / "run", *sets, under=under)


def require_no_key(attempt: Attempt, folder: Path) -> None:
    """Nothing that was printed, and no file of the run, holds a key."""
    left = {"what was printed": attempt.said.encode()} | {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(left) > 5
    assert [(where, name) for where, content in left.items() for name, key in KEYS.items() if key.encode() in content] == []


def test_no_key_is_in_anything_that_a_finished_run_leaves(forks: Forks, leaky: Path, cache: Path) -> None:
    done = run(forks, leaky)
    assert done.status == 0, done.said
    assert "401 for <OPENAI_API_KEY> and <HF_TOKEN>" in done.said  # it was said, without the keys
    assert "# pasted by mistake: <OPENAI_API_KEY>" in (leaky.parent / "run" / "recipe.yaml").read_text()
    assert list((leaky.parent / "run" / "trackers").rglob("*.wandb"))
    require_no_key(done, leaky.parent / "run")
    require_no_key(done, cache)


def test_no_key_is_in_anything_that_a_failed_run_leaves(forks: Forks, leaky: Path) -> None:
    failed = run(forks, leaky, "--set", "best.scorer.on_failure=stop")
    assert failed.status == 2, failed.said
    assert "error: prompt q1: leaky:score failed: PermissionError: 401 for <OPENAI_API_KEY> and <HF_TOKEN>" in failed.said
    require_no_key(failed, leaky.parent / "run")


def test_a_key_on_the_command_line_is_kept_by_its_name(forks: Forks, leaky: Path) -> None:
    done = run(forks, leaky, "--set", f"trackers=[{{kind: wandb, project: {KEYS['WANDB_API_KEY']}}}]", "--set", "seed=1")
    assert done.status == 0, done.said
    manifest = json.loads((leaky.parent / "run" / "manifest.json").read_text())
    assert manifest["set"][0] == "trackers=[{kind: wandb, project: <WANDB_API_KEY>}]"
    assert "project: <WANDB_API_KEY>" in manifest["command"]
    assert KEYS["WANDB_API_KEY"] not in (leaky.parent / "run" / "recipe.resolved.json").read_text()
