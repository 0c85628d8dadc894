"""The policy-gradient losses against TRL 1.16 on the same random numbers: values and gradients to 1e-5. Skipped where TRL is not installed."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.credit.group import GroupRelative
from xwin.data.batch import Outputs, Sample, pack
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score
from xwin.objectives.base import Objective
from xwin.objectives.cispo import Cispo
from xwin.objectives.grpo import Grpo
from xwin.objectives.gspo import Gspo
from xwin.scorers.length import Overlong

LENGTHS = (3, 7, 1, 5)
ADVANTAGES = (1.2, -0.8, 0.5, -0.3)
LONGEST = 9
KL = {"coef": 0.3, "estimator": "k3"}
CASES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "grpo": (Grpo.model_validate({"clip": 0.2, "weighting": {"kind": "sequence_mean"}}), {"loss_type": "grpo"}),
    "grpo with kl": (
        Grpo.model_validate({"clip": 0.2, "weighting": {"kind": "sequence_mean"}, "kl": {**KL, "gradient": "estimator"}}),
        {"loss_type": "grpo", "beta": 0.3},
    ),
    "grpo with corrected kl": (
        Grpo.model_validate({"clip": 0.2, "weighting": {"kind": "sequence_mean"}, "kl": KL}),
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "dapo": (Grpo.model_validate({"clip": [0.2, 0.28]}), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (Grpo.model_validate({"clip": 0.2, "weighting": {"kind": "fixed_length", "tokens": LONGEST}}), {"loss_type": "dr_grpo"}),
    "gspo": (Gspo(clip=(0.02, 0.03)), {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03}),
    "cispo": (Cispo(ratio_cap=1.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
}


def rows(seed: int) -> list[Tensor]:
    """Log-probs of four answers."""
    random = torch.Generator().manual_seed(seed)
    return [-(0.3 + 0.7 * torch.rand(n, generator=random)) for n in LENGTHS]


def ours(objective: Objective, logp: Sequence[Tensor], old: Sequence[Tensor], ref: Sequence[Tensor]) -> Tensor:
    """The Learner's loss of one step."""
    samples = []
    for i, n in enumerate(LENGTHS):
        columns = {"old_logp": old[i].tolist(), "ref_logp": ref[i].tolist(), "advantage": [ADVANTAGES[i]] * n}
        padded = {name: (0.0, 0.0, *row) for name, row in columns.items() if name in objective.needs}
        samples.append(Sample(f"a{i}", (1, 2, *range(10 + 10 * i, 10 + 10 * i + n)), (False,) * 2 + (True,) * n, padded))
    (batch,) = pack(samples, tokens=99)
    said = torch.zeros(len(batch))
    for s in batch.samples():
        where = (batch.segment == s).nonzero().squeeze(1)[2:]
        said = said.index_copy(0, where, logp[int(batch.ids[s][1:])])
    weighting = objective.weigh(batch)
    values = objective.loss(batch, Outputs(logp=said, entropy=torch.ones(len(batch)))).values
    return (values.masked_fill(weighting.weight == 0, 0.0) * weighting.weight).sum() / weighting.count


def padded(values: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def theirs(settings: dict[str, Any], logp: Sequence[Tensor], old: Sequence[Tensor], ref: Sequence[Tensor]) -> Tensor:
    """TRL's `_compute_loss` of a trainer of which only what that function reads exists."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed: pip install 'xwin-lm[bench]'")
    compute: Callable[..., Tensor] = inspect.unwrap(grpo.GRPOTrainer._compute_loss)
    known = {"beta": 0.0, "importance_sampling_level": "token", "epsilon": 0.2, "use_bias_correction_kl": False, **settings}
    mask = padded([torch.ones(n) for n in LENGTHS])
    said = (padded(logp), torch.zeros_like(mask), None)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: said if "aux_loss" in inspect.getsource(compute) else said[:2],
        args=SimpleNamespace(delta=None, use_bias_correction_kl=known["use_bias_correction_kl"], steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x, gather_for_metrics=lambda x: x),
        model=SimpleNamespace(training=True),
        epsilon_low=known["epsilon"],
        epsilon_high=known.get("epsilon_high", known["epsilon"]),
        beta=known["beta"],
        loss_type=known["loss_type"],
        importance_sampling_level=known["importance_sampling_level"],
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        tools=None,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones_like(mask, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(ref),
        "num_items_in_batch": mask.sum(),
    }
    return compute(trainer, None, inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_are_those_of_trl(name: str, seed: int) -> None:
    objective, settings = CASES[name]
    logp, old, ref = ([row.requires_grad_(k == 0) for row in rows(3 * seed + k)] for k in range(3))
    mine = ours(objective, logp, old, ref)
    slopes = torch.autograd.grad(mine, logp)
    other = theirs(settings, logp, old, ref)
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    for a, b in zip(slopes, torch.autograd.grad(other, logp), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_soft_overlong_punishment_is_trls() -> None:
    trl = pytest.importorskip("trl.rewards", reason="trl is not installed: pip install 'xwin-lm[bench]'")
    lengths = range(1, 130)
    theirs_ = trl.get_soft_overlong_punishment(100, 20)(completion_ids=[[1] * n for n in lengths])
    assert [Overlong(longest=100, buffer=20).of(n) for n in lengths] == pytest.approx(theirs_)


def test_group_advantages_are_trls_formula() -> None:
    """Its trainer computes them inline: (r - mean) / (std + 1e-4), std of a sample; written out here, so it needs no TRL."""
    scores = torch.tensor([0.0, 1.0, 1.0, 0.25])
    rollouts = tuple(Rollout("q", k, 0, (1,), (2,), (-1.0,), "stop", Score(float(s))) for k, s in enumerate(scores))
    group = Group(Conversation("q", (Message("user", "?"),)), rollouts, ("",) * 4)
    found = [s.columns["advantage"][1] for s in GroupRelative().assign([group], {"old_logp": [(-1.0,)] * 4}, 0.0).samples]  # type: ignore[index]
    assert found == pytest.approx(((scores - scores.mean()) / (scores.std() + 1e-4)).tolist())
