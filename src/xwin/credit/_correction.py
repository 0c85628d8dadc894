"""What to do about an engine whose log-probs differ from the learner's: it samples from pi_engine, the update believes it was pi_old.

Each token's advantage is multiplied by the importance weight w = pi_old / pi_engine, truncated or masked. Every policy objective of this
project is linear in the advantage for factors >= 0, so this is the weight on the loss that the sources ask for.

Truncated: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (after Ionides 2008), min(w, cap).
Masked: "IcePop", Ring team 2025, used by GLM-5, arXiv:2602.15763: w where low <= w <= high, else 0. A masked token still counts in the
denominator of the step. Over an answer, w is the product over its tokens, which is unbiased and has a large variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeAlias

import torch
from annotated_types import Ge, Gt
from pydantic import Field, model_validator
from torch import Tensor

from xwin.credit.base import Columns, Credited, to_sample
from xwin.data.rollout import Rollout
from xwin.spec import Spec

Over: TypeAlias = Literal["token", "answer"]


class Truncate(Spec):
    """Weights above the cap count as the cap."""

    kind: Literal["truncate"] = "truncate"

    cap: Annotated[float, Gt(0)] = 2.0
    """Largest weight, unitless."""

    over: Over = "token"
    """One weight per token, or one per answer."""

    def weight(self, ratio: Tensor) -> Tensor:
        """min(ratio, cap). [any shape]"""
        return ratio.clamp(max=self.cap)


class Mask(Spec):
    """Tokens whose weight is out of bounds are left out."""

    kind: Literal["mask"] = "mask"

    low: Annotated[float, Ge(0)] = 0.5
    """Smallest weight that is trained on, unitless."""

    high: Annotated[float, Gt(0)] = 5.0
    """Largest weight that is trained on, unitless."""

    over: Over = "token"
    """One weight per token, or one per answer."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}: every token would be left out")
        return self

    def weight(self, ratio: Tensor) -> Tensor:
        """The ratio where low <= ratio <= high, else 0. [any shape]"""
        return ratio.masked_fill((ratio < self.low) | (ratio > self.high), 0.0)


Correction: TypeAlias = Annotated[Truncate | Mask, Field(discriminator="kind")]


def weights(correction: Truncate | Mask, old_logp: Tensor, engine_logp: Tensor) -> Tensor:
    """The weight of each token of one answer.

    Args:
        correction: how weights are bounded.
        old_logp: [L] under the learner before the update, nats.
        engine_logp: [L] under the engine that sampled, nats.

    Returns:
        [L] unitless, >= 0.
    """
    gap = old_logp - engine_logp
    gap = gap.sum().expand_as(gap) if correction.over == "answer" else gap
    return correction.weight(gap.clamp(max=50.0).exp())


def corrected(
    correction: Truncate | Mask | None, rollouts: Sequence[Rollout], columns: Columns, advantages: Sequence[Tensor]
) -> tuple[list[Tensor], Mapping[str, tuple[float, float]]]:
    """The advantages of each rollout [L] times its weights, and the metric importance_weight as (sum, count); unchanged without a correction."""
    if correction is None:
        return list(advantages), {}
    pairs = zip(columns["old_logp"], rollouts, strict=True)
    found = [weights(correction, torch.tensor(old, dtype=torch.float64), torch.tensor(r.logp, dtype=torch.float64)) for old, r in pairs]
    flat = torch.cat(found)
    stats = {"importance_weight": (float(flat.sum()), float(flat.numel()))}
    return [a * w for a, w in zip(advantages, found, strict=True)], stats


def credited(
    correction: Truncate | Mask | None, rollouts: Sequence[Rollout], columns: Columns, advantages: Sequence[Tensor], raw: Tensor
) -> Credited:
    """Samples with old_logp and the corrected advantages, and what credit without a critic shows.

    Args:
        correction: for the engine.
        rollouts: in order.
        columns: with old_logp.
        advantages: of each rollout [L].
        raw: [sum of lengths] of all of them, before any whitening, whose mean is shown.
    """
    weighted, stats = corrected(correction, rollouts, columns, advantages)
    rows = zip(rollouts, columns["old_logp"], weighted, strict=True)
    samples = tuple(to_sample(r, {"old_logp": old, "advantage": a.tolist()}) for r, old, a in rows)
    return Credited(samples, {"advantage": (float(raw.sum()), float(raw.numel())), **stats})
