"""Reward modelling from outcomes: is the answer right or wrong? What a verifier says of sampled solutions teaches a model that needs no verifier.

Cobbe et al. 2021, arXiv:2110.14168, section 4.2: a verifier is trained to predict whether a sampled solution is correct. Deviations: one
prediction, at the end of the solution, where the paper predicts at every token; and no language modelling loss beside it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives._reward import RewardObjective, disagreement, each_head
from xwin.objectives._weighting import answer_mean, trained_tokens
from xwin.objectives.base import Loss, Weighting, mean


def outcome(score: Tensor, right: Tensor) -> Tensor:
    """Per-answer loss  L_s = -y log sigmoid(s) - (1 - y) log sigmoid(-s): binary cross-entropy, the score is the log-odds of being right.

    Args:
        score: [S] nats. The only input with gradient. Any shape will do.
        right: [S] y, 1 for a right answer and 0 for a wrong one.

    Returns:
        [S] loss, nats.
    """
    return -right * logsigmoid(score) - (1 - right) * logsigmoid(-score)


class Outcome(RewardObjective):
    """Logistic regression on single answers with a label; every answer alike."""

    needs: ClassVar[frozenset[str]] = frozenset({"label"})

    def weigh(self, batch: Batch) -> Weighting:
        return answer_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        score, right = each_head(out.get("score")), batch.column("label")
        trained = trained_tokens(batch) > 0
        stats = {
            "accuracy": mean((score.mean(1) > 0) == (right > 0.5), trained),
            "labelled_right": mean(right, trained),
            **disagreement(score, trained),
        }
        return Loss(outcome(score, right[:, None]).mean(1), stats)
