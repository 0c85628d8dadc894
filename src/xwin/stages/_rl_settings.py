"""Settings of reinforcement learning that are more than one number: the critic, the price of KL, the refill of a round."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from xwin.learning.optim import Optim
from xwin.models.tuning import LastLayers, Tuning
from xwin.objectives.value import Value
from xwin.ops import Estimator
from xwin.run.artifacts import NetworkRef
from xwin.spec import Spec


class Critic(Spec):
    """The model that says what a token is worth."""

    init: NetworkRef
    """What it starts from, usually the reward model; its value head is drawn anew."""

    tune: Tuning = LastLayers()
    """Which of its parameters are trained, beside the head."""

    optim: Optim = Optim(lr=1e-4, schedule="constant")
    """How they move."""

    objective: Value = Value()
    """Its loss."""


class Kl(Spec):
    """The price of leaving the reference, paid per token inside the reward."""

    coef: Annotated[float, Ge(0)] = 0.05
    """Reward units per nat, at the start; 0 = KL is measured and costs nothing."""

    estimator: Estimator = "k1"
    """What a token pays for: k1 = log pi - log ref, whose gradient is that of the KL; k2 and k3 are never negative and vary less, but pull
    elsewhere (Liu et al. 2025, arXiv:2510.01555)."""

    target: Annotated[float, Gt(0)] | None = None
    """Nats per answer that the price is steered to (Ziegler et al. 2019, arXiv:1909.08593, section 2.2); null = the price stays."""

    rate: Annotated[float, Gt(0)] = 0.1
    """Largest relative change of the price in one step is a fifth of this, unitless."""

    def following(self, coef: float, kl: float) -> float:
        """The price after a step whose answers had `kl` nats: x (1 + rate * clip(kl / target - 1, -0.2, 0.2))."""
        if self.target is None:
            return coef
        return coef * (1 + self.rate * min(max(kl / self.target - 1, -0.2), 0.2))


class Refill(Spec):
    """DAPO's dynamic sampling: groups whose answers all score the same are dropped, and others drawn until the round is full.

    Yu et al. 2025, arXiv:2503.14476, equation 11. So are groups of which no answer could be scored. What is drawn in vain is logged and
    counted, and its prompts are used up. When the draws are spent the round is learned from as far as it is full; when no group varied at
    all, from the first ones, where only shaping beside `part`, a price of KL or a critic is left to learn from.
    """

    draws: Annotated[int, Ge(2)] = 4
    """Times that prompts are drawn for a round, at most."""

    part: str | None = None
    """Part of the score that must vary, before any shaping, such as a name in a sum; null = the score itself."""
