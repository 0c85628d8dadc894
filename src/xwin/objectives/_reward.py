"""What objectives over the scores of whole answers share: the heads of an ensemble, and the loss at the start."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from xwin.objectives.base import Objective, mean
from xwin.run.events import Measure


class RewardObjective(Objective):
    """An objective over scores: what the stage `reward_model` takes.

    It reads pairs of bonded samples, chosen first; or, when it needs the column `label`, single samples. Each head of an ensemble has the loss
    that it would have alone, and the loss of a pair or answer is the mean over heads.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"score"})

    @property
    def start(self) -> float | None:
        """The loss of heads that have learned nothing, nats; None = it depends on the data."""
        return math.log(2)


def each_head(score: Tensor) -> Tensor:
    """[S] or [S, K] -> [S, K]"""
    return score if score.ndim == 2 else score[:, None]


def disagreement(values: Tensor, where: Tensor | None = None) -> dict[str, Measure]:
    """The standard deviation over heads (population form), in the mean over units; nothing where one head is alone.

    Args:
        values: [U, K] reward units.
        where: [U] bool, the units that count; None = all.
    """
    if values.shape[1] == 1:
        return {}
    from_mean = values.detach() - values.detach().mean(1, keepdim=True)
    return {"disagreement": mean(from_mean.square().mean(1).sqrt(), where)}  # torch's own warns where there is no unit at all


def longer(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first is longer, 0 where the second is, one half where they are equally long; any shape."""
    return (1 + torch.sign(first - second)) / 2
