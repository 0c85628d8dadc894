"""KL to the reference as a term of the loss, with the gradient it should have.

The value of an estimator says nothing of its gradient (Liu et al. 2025, arXiv:2510.01555): the gradient of k1 is zero-mean noise, that of k3
(GRPO as published: Shao et al. 2024, arXiv:2402.03300, equation 4) only approximates that of KL(pi || ref), that of k2 is it, and all of them
are wrong once the policy has left the one that sampled. Weighted by the ratio r = pi / pi_old the three agree, on policy and off:

    k1:  r * k1          gradient  r * (k1 + 1) * d log pi,  and r * d log pi is zero in the mean
    k2:  stop(r) * k2    gradient  r * k1 * d log pi
    k3:  r * k3          gradient  r * k1 * d log pi
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Gt
from pydantic import model_validator
from torch import Tensor

from xwin.objectives._clip import LARGEST_LOG_RATIO, ratio_of
from xwin.ops import ESTIMATORS, Estimator
from xwin.spec import Spec


def kl_loss(logp: Tensor, old_logp: Tensor, ref_logp: Tensor, *, estimator: Estimator, weighted: bool) -> Tensor:
    """Per-token term of the loss.

    Args:
        logp: [T] log-probability under the policy in training, nats. The only input with gradient.
        old_logp: [T] same, under the policy that sampled, nats.
        ref_logp: [T] same, under the reference, nats.
        estimator: of KL(pi || ref).
        weighted: by pi / pi_old, as above; else the bare estimator.

    Returns:
        [T] nats, unmasked, unreduced.
    """
    near = ref_logp.clamp(max=logp.detach() + LARGEST_LOG_RATIO)  # k3 grows like e^(ref - log pi)
    value = ESTIMATORS[estimator](logp, near)
    if not weighted:
        return value
    ratio = ratio_of(logp - old_logp)
    return (ratio.detach() if estimator == "k2" else ratio) * value


class KlTerm(Spec):
    """KL to the reference in the loss, instead of in the reward."""

    coef: Annotated[float, Gt(0)] = 0.001
    """Loss per nat, unitless."""

    estimator: Estimator = "k3"
    """Of KL(pi || ref): k1 (unbiased, high variance), k2 (biased value), k3 (unbiased, low variance)."""

    gradient: Literal["reverse_kl", "estimator"] = "reverse_kl"
    """Whose gradient it has: that of KL(pi || ref), by weighting each token with pi / pi_old; or the estimator's own, as GRPO was published."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if self.estimator == "k1" and self.gradient == "estimator":
            raise ValueError("the gradient of k1 alone is noise around zero; choose gradient: reverse_kl, or another estimator")
        return self

    def loss(self, logp: Tensor, old_logp: Tensor, ref_logp: Tensor) -> Tensor:
        """[T] the term without its coefficient, nats; see kl_loss."""
        return kl_loss(logp, old_logp, ref_logp, estimator=self.estimator, weighted=self.gradient == "reverse_kl")
