"""The laws of the learner once more, on a CUDA device: `pytest -m gpu`. Each is a law of test_learner.py or test_gradient_laws.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.distributed.world import World
from xwin.learning import checkpoint
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.recompute import recompute
from xwin.models.tuning import Frozen, Full, LoRA
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.objectives.dpo import Dpo
from xwin.objectives.ppo import Ppo
from xwin.objectives.sft import Sft

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU = World(0, 1, torch.device("cpu"))
LEARNERS: list[tuple[Objective, Any]] = [(Sft(), "language"), (Dpo(), "language"), (Ppo(), "language"), (BradleyTerry(), "score")]
kinds = pytest.mark.parametrize(("objective", "head"), LEARNERS, ids=[o.kind for o, _ in LEARNERS])
SAME = {"float32": 1e-4, "bfloat16": 3e-2}
"""Of the norm of a parameter's gradient. fp32 sums are in another order on every device."""
dtypes = pytest.mark.parametrize("dtype", list(SAME))


def rows(objective: Objective) -> list[Sample]:
    """Bonded pairs of very different length over two prompts, with every column the objective needs."""
    random = torch.Generator().manual_seed(0)
    out = []
    for k, length in enumerate([1, 40, 3, 7, 25, 2, 11, 5]):
        answer = tuple(torch.randint(3, 259, (length,), generator=random).tolist())
        noise = torch.randn(21 + length, generator=random) * 0.3
        columns: dict[str, Any] = {n: tuple((noise - 5.5 * n.endswith("logp")).tolist()) for n in sorted(objective.needs)}
        columns |= {"margin": 0.0} if "margin" in columns else {}
        out.append(Sample(f"s{k}", (*range(70, 90), 100 + k // 4, *answer), (False,) * 21 + (True,) * length, columns, bond=f"p{k // 2}"))
    return out


def learner(folder: Path, objective: Objective, head: Any, world: World, *, dtype: str = "float32", tune: Any = None, lr: float = 1e-3) -> Learner:
    """With gradients that are not clipped."""
    world.seed(0, "init")
    model = causal.load(folder, head=head, tuning=tune or Full(), dtype=dtype, head_seed=1)
    return Learner(model, folder, world, objective, Optim(max_norm=1e9, lr=lr, schedule="constant", warmup=0), 8)


def gradient(one: Learner, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the optimizer sees in one step."""
    seen: dict[str, Tensor] = {}
    assert one.optimizer is not None
    named = dict(one.model.named_parameters())
    one.optimizer.register_step_pre_hook(lambda *_: seen.update({n: p.grad.cpu() for n, p in named.items() if p.grad is not None}))
    one.step(batches)
    return seen


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        assert (found[name] - g).norm() <= bound * g.norm(), name


LAYOUTS: dict[str, Callable[[list[Sample]], list[Batch]]] = {
    "a pair at a time": lambda r: [b for k in range(0, 8, 2) for b in pack(r[k : k + 2], tokens=200)],
    "prompts shared": lambda r: pack(r, tokens=400, share=True),
    "with an idle one": lambda r: pack(r, tokens=400) + pack([replace(r[0], id="idle", mask=(False,) * 22, bond=None)], tokens=400),
}


@kinds
@dtypes
def test_the_gradient_is_that_of_the_cpu_in_any_layout(objective: Objective, head: Any, dtype: str, tiny_folder: Path) -> None:
    samples = rows(objective)
    expected = gradient(learner(tiny_folder, objective, head, CPU, dtype=dtype), pack(samples, tokens=400))
    for layout in (lambda r: pack(r, tokens=400), *LAYOUTS.values()):
        assert_same(gradient(learner(tiny_folder, objective, head, World.alone(), dtype=dtype), layout(samples)), expected, SAME[dtype])


@dtypes
def test_layers_computed_again_give_the_same_gradient(dtype: str, tiny_folder: Path) -> None:
    again = learner(tiny_folder, Sft(), "language", World.alone(), dtype=dtype)
    recompute(again.model.network)
    expected = gradient(learner(tiny_folder, Sft(), "language", World.alone(), dtype=dtype), pack(rows(Sft()), tokens=400))
    assert_same(gradient(again, pack(rows(Sft()), tokens=400)), expected, SAME[dtype])


@pytest.mark.parametrize("tune", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_masters_and_moments_are_fp32_where_the_arithmetic_is_bf16(tune: Any, tiny_folder: Path) -> None:
    one = learner(tiny_folder, Sft(), "language", World.alone(), dtype="bfloat16", tune=tune, lr=1e-6)
    trained = {name: p for name, p in one.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    one.step(pack(rows(Sft()), tokens=400))
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {x.dtype for found in one.state()["moments"].values() for x in found.values()} == {torch.float32}
    moved = [float((trained[name].detach() - before[name]).abs().max()) for name in trained if "lora_A" not in name]
    assert min(moved) > 5e-7


def test_a_checkpoint_goes_from_the_gpu_to_the_cpu_and_back(tiny_folder: Path, tmp_path: Path) -> None:
    batches = pack(rows(Sft()), tokens=400)
    here = learner(tiny_folder, Sft(), "language", World.alone())
    here.step(batches)
    there = learner(tiny_folder, Sft(), "language", CPU)
    checkpoint.load(checkpoint.save(tmp_path / "a", 1, {"policy": here.state()}, {}), {"policy": there.state()})
    back = learner(tiny_folder, Sft(), "language", World.alone())
    checkpoint.load(checkpoint.save(tmp_path / "b", 1, {"policy": there.state()}, {}), {"policy": back.state()})
    for name, p in here.state()["parameters"].items():
        assert torch.equal(back.state()["parameters"][name], p)
        for key, x in here.state()["moments"][name].items():
            assert torch.equal(back.state()["moments"][name][key].cpu(), x.cpu())


def test_what_is_published_says_what_was_trained(tiny_folder: Path, tmp_path: Path) -> None:
    one, batches = learner(tiny_folder, Sft(), "language", World.alone(), lr=1e-2), pack(rows(Sft()), tokens=400)
    one.step(batches)
    said = one.forward(batches, frozenset({"logp"}))[0].get("logp").cpu()
    one.publish(tmp_path / "out")
    again = causal.load(tmp_path / "out", head="language", tuning=Frozen(), dtype="float32")(batches[0], frozenset({"logp"})).get("logp")
    torch.testing.assert_close(again, said, atol=1e-4, rtol=1e-4)
