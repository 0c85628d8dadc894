"""Preference losses and their gradients are those of trl 1.16 on the same random inputs.

trl's own loss functions run on a trainer of which only the settings are filled in, and on a model that is a table: it answers with the
log-probabilities of the batch. Skipped where trl is not installed.
"""

from __future__ import annotations

import importlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.objectives._preference import Pairs
from xwin.objectives._weighting import per_answer_token
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import bradley_terry
from xwin.objectives.dpo import Dpo, dpo
from xwin.objectives.ipo import Ipo
from xwin.objectives.kto import Kto, reference_point
from xwin.objectives.orpo import orpo
from xwin.objectives.simpo import simpo

from .judged import answer, drawn, pair, said

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def trainer(module: str, name: str) -> Any:
    """A trainer class of trl."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", reason="trl is not installed: pip install 'xwin-lm[bench]'")
        return getattr(importlib.import_module(f"trl.{module}"), name)


def settings(**given: Any) -> SimpleNamespace:
    """A trainer's self: the settings that the loss reads, and one process."""
    alone = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    fixed = {
        "accelerator": alone,
        "model": SimpleNamespace(training=False),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": {"eval": defaultdict(list)},
        "_total_train_tokens": 0,
    }
    return SimpleNamespace(**fixed, **given)


def padded(batch: Batch, order: Sequence[int], x: Tensor) -> Tensor:
    """[T] -> [rows, longest], zeros at the end; rows are the segments in this order."""
    return torch.nn.utils.rnn.pad_sequence([x[batch.segment == s] for s in order], batch_first=True)


def table(logp: Tensor, other: Tensor | None = None) -> Any:
    """A model that answers with these log-probs, [rows, longest]; with `other` where the first token id is negative."""

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        rows = logp if input_ids[0, 0] >= 0 or other is None else other
        shape = rows[:, 1:].shape
        zeros = torch.zeros(shape)
        return SimpleNamespace(log_probs=rows[:, 1:], entropy=zeros, mean_logits=zeros, is_top1=torch.zeros(shape, dtype=torch.bool))

    return model


def ours(objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """(mean loss, gradient of every log-prob)"""
    out, leaf = said(batch)
    w = objective.weigh(batch)
    loss = (objective.loss(batch, out).values * w.weight).sum() / w.count
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def theirs_on_pairs(samples: Sequence[Sample], batch: Batch, **given: Any) -> tuple[Tensor, Tensor]:
    """The same of trl's DPO trainer."""
    cls = trainer("trainer.dpo_trainer", "DPOTrainer")
    pairs, (_, leaf) = Pairs.of(batch), said(batch)
    order = [*pairs.chosen.tolist(), *pairs.rejected.tolist()]
    masked = leaf.masked_fill(~batch.mask, 0.0)
    ref = batch.per_sequence(batch.column("ref_logp"))
    inputs = {
        "input_ids": padded(batch, order, batch.tokens),
        "attention_mask": padded(batch, order, torch.ones_like(batch.tokens)),
        "completion_mask": padded(batch, order, batch.mask.long()),
        "ref_chosen_logps": ref[pairs.chosen],
        "ref_rejected_logps": ref[pairs.rejected],
    }
    fixed = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False}
    loss = cls._compute_loss(settings(**fixed, **given), table(padded(batch, order, masked)), inputs, return_outputs=False)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


PAIRED = {
    "sigmoid": (Dpo(beta=0.3), {"beta": 0.3, "loss_types": ["sigmoid"]}),
    "robust": (Dpo(beta=0.3, flipped=0.1, smoothing="robust"), {"beta": 0.3, "loss_types": ["robust"], "label_smoothing": 0.1}),
    "length-normalised": (Dpo(beta=3.0, log_ratio="mean"), {"beta": 3.0, "loss_types": ["sigmoid_norm"]}),
    "ipo": (Ipo(tau=0.3, log_ratio="mean"), {"beta": 0.3, "loss_types": ["ipo"]}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", PAIRED)
def test_losses_of_pairs(case: str, seed: int) -> None:
    objective, given = PAIRED[case]
    samples = drawn(seed)
    (batch,) = pack(samples, tokens=4096)
    expected = theirs_on_pairs(samples, batch, loss_weights=[1.0], **given)
    for found, theirs in zip(ours(objective, batch), expected, strict=True):
        torch.testing.assert_close(found, theirs, **CLOSE)


def test_the_log_likelihood_term_where_chosen_answers_are_equally_long() -> None:
    """trl averages over the tokens of all chosen answers; with equal lengths that is the mean over answers of the mean over tokens."""
    random = torch.Generator().manual_seed(5)
    rows = [(-torch.rand(4, 3, generator=random) * 3).tolist() for _ in range(3)]
    samples = [s for k, (c, r, rc, rr) in enumerate(rows) for s in pair(f"p{k}", c, r, rc, rr)]
    (batch,) = pack(samples, tokens=4096)
    expected = theirs_on_pairs(samples, batch, beta=0.3, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.2])
    for found, theirs in zip(ours(Dpo(beta=0.3, nll=0.2), batch), expected, strict=True):
        torch.testing.assert_close(found, theirs, **CLOSE)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_kto(shift: float) -> None:
    """Answers with labels, and other answers for the reference point, which is above zero or clipped to it."""
    cls = trainer("trainer.kto_trainer", "KTOTrainer")
    random = torch.Generator().manual_seed(2)
    elsewhere, elsewhere_ref = torch.randn(6, 5, generator=random) + shift, torch.randn(6, 5, generator=random)
    zero = reference_point(elsewhere[:, 1:].sum(1) - elsewhere_ref[:, 1:].sum(1))
    rows = [(float(i % 3 > 0), s.columns["logp"], s.columns["ref_logp"]) for i, s in enumerate(drawn(2, 3))]
    samples = [answer(f"{i}", logp[3:], ref[3:], None, label=label, reference_point=zero) for i, (label, logp, ref) in enumerate(rows)]  # type: ignore[index]
    (batch,) = pack(samples, tokens=4096)
    order, (_, leaf) = list(range(6)), said(batch)
    masked = leaf.masked_fill(~batch.mask, 0.0)
    inputs = {
        "input_ids": padded(batch, order, batch.tokens),
        "attention_mask": padded(batch, order, torch.ones_like(batch.tokens)),
        "completion_mask": padded(batch, order, batch.mask.long()),
        "label": batch.column("label").bool(),
        "KL_input_ids": torch.full((6, 5), -1),
        "KL_attention_mask": torch.ones(6, 5),
        "KL_completion_mask": torch.ones(6, 5),
        "ref_logps": batch.per_sequence(batch.column("ref_logp")),
        "ref_KL_logps": elsewhere_ref[:, 1:].sum(1),
    }
    them = settings(beta=0.3, calculate_KL=True, loss_type="kto", desirable_weight=0.5, undesirable_weight=2.0)
    model = table(padded(batch, order, masked), elsewhere)
    them._compute_kl_logps = lambda model, batch: cls._compute_kl_logps(them, model, batch)
    loss = cls._compute_loss(them, model, inputs, return_outputs=False)
    loss.backward()
    assert (zero > 0) == (shift > 0)
    value, gradient = ours(Kto(beta=0.3, desirable=0.5, undesirable=2.0), batch)
    torch.testing.assert_close(value, loss.detach(), **CLOSE)
    torch.testing.assert_close(gradient, leaf.grad, **CLOSE)


def of_answers(seed: int) -> list[Tensor]:
    """Mean log-probs of chosen and of rejected answers, twice, each a leaf."""
    (batch,) = pack(drawn(seed), tokens=4096)
    both = Pairs.of(batch).split(per_answer_token(batch, batch.column("logp")))
    return [x.clone().requires_grad_() for x in (*both, *both)]


def same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Values are close, and so are the gradients of the first and the second half of the leaves."""
    torch.testing.assert_close(found.detach(), expected.detach(), **CLOSE)
    (found.sum() + expected.sum()).backward()
    half = len(leaves) // 2
    for mine, theirs in zip(leaves[:half], leaves[half:], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_simpo(seed: int) -> None:
    cls = trainer("experimental.cpo.cpo_trainer", "CPOTrainer")
    leaves = of_answers(seed)
    them = settings(alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=1.0, label_smoothing=0.0)
    same(simpo(leaves[0], leaves[1], beta=2.0, gamma=1.0), cls.cpo_loss(them, leaves[2], leaves[3])[0], leaves)


@pytest.mark.parametrize("seed", range(3))
def test_conservative_smoothing(seed: int) -> None:
    """trl 1.16 has it in its CPO loss alone: the same function of what it is given."""
    cls = trainer("experimental.cpo.cpo_trainer", "CPOTrainer")
    leaves = of_answers(seed)
    them = settings(alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=0.1)
    same(dpo(leaves[0], leaves[1], beta=0.3, flipped=0.1, smoothing="conservative"), cls.cpo_loss(them, leaves[2], leaves[3])[0], leaves)


@pytest.mark.parametrize("seed", range(3))
def test_the_odds_ratio_of_orpo(seed: int) -> None:
    """Without the log-likelihood, which trl takes over prompts as well; it returns what is subtracted."""
    cls = trainer("experimental.orpo.orpo_trainer", "ORPOTrainer")
    leaves = of_answers(seed)
    theirs = -cls.odds_ratio_loss(settings(beta=0.2), leaves[2], leaves[3])[0]
    same(orpo(leaves[0], leaves[1], weight=0.2) + leaves[0], theirs, leaves)


def test_reward_modelling_with_margin_and_centring() -> None:
    cls = trainer("trainer.reward_trainer", "RewardTrainer")
    random = torch.Generator().manual_seed(1)
    margin = torch.rand(5, generator=random)
    scores = [torch.randn(5, generator=random) for _ in range(2)]
    leaves = [x.clone().requires_grad_() for x in (*scores, *scores)]
    them = settings(args=SimpleNamespace(center_rewards_coefficient=0.01))
    inputs = {"margin": margin, "attention_mask": torch.ones(10, 3)}
    theirs = cls.compute_loss(them, lambda **_: SimpleNamespace(logits=torch.cat(leaves[2:])[:, None]), inputs)
    same(bradley_terry(leaves[0], leaves[1], margin, centre=0.01, flipped=0.0).mean(), theirs, leaves)
