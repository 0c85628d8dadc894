"""What objectives over judged answers share: pairs, what the model says of an answer as a whole, and the metrics of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xwin.data.batch import Batch
from xwin.objectives.base import Objective, mean
from xwin.ops import kl_k3
from xwin.run.events import Measure


class PreferenceObjective(Objective):
    """An objective over judged answers: what the stage `preference` takes.

    It reads pairs of bonded samples, chosen first; or, when it needs the column `label`, single samples.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logp"})

    @property
    def start(self) -> float | None:
        """The loss while policy and reference are one, nats; None = it depends on the data."""
        return None


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch: segments of chosen and of rejected answers."""

    batch: Batch
    chosen: Tensor
    """[P] int64"""
    rejected: Tensor
    """[P] int64"""

    @classmethod
    def of(cls, batch: Batch) -> Pairs:
        """The bonds of two."""
        both = torch.tensor(batch.pairs(), dtype=torch.long, device=batch.tokens.device).reshape(-1, 2)
        return cls(batch, both[:, 0], both[:, 1])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[S] -> ([P] of the chosen, [P] of the rejected)."""
        return x[self.chosen], x[self.rejected]

    def stats(self, logp: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, Measure]:
        """The metrics of every paired objective.

        Args:
            logp: [T] under the policy, nats.
            chosen: [P] implicit reward of the better answer, reward units.
            rejected: [P] of the other.
        """
        better, worse = self.split(self.batch.per_sequence(logp))
        return {
            "accuracy": mean(chosen > rejected),
            "score_margin": mean(chosen - rejected),
            "chosen_logp": mean(better),
            "rejected_logp": mean(worse),
        }


def distance(batch: Batch, logp: Tensor, ref_logp: Tensor) -> dict[str, Measure]:
    """How far the policy is from the reference on the data's tokens: k3 of KL(reference || policy), nats per token.

    Unbiased where the reference wrote the answers; elsewhere a measure that is 0 only where both agree.
    """
    return {"reference_kl": mean(kl_k3(ref_logp, logp.detach()), batch.mask)}
