"""IPO: pull the difference of log-ratios to a finite target instead of to infinity.

Azar et al. 2023, arXiv:2310.12036, equation 17. The paper's log-ratios are those of whole answers, so sums over tokens are the default;
trl takes means, after asking the authors, and says that the paper's results are of that form: `log_ratio: mean` is it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import Pairs, PreferenceObjective, distance
from xwin.objectives._weighting import per_answer_token
from xwin.objectives.base import Loss, Weighting, pair_mean


def ipo(chosen: Tensor, rejected: Tensor, *, tau: float) -> Tensor:
    """Per-pair loss  L_p = (h - 1 / (2 tau))^2,  h = log-ratio of the chosen answer - log-ratio of the rejected one.

    Args:
        chosen: [P] log pi - log ref of the better answer, nats. Carries gradient.
        rejected: [P] of the other. Carries gradient.
        tau: strength of the pull to the reference, per nat, > 0.

    Returns:
        [P] loss, nats squared.
    """
    return (chosen - rejected - 1 / (2 * tau)) ** 2


class Ipo(PreferenceObjective):
    """Least squares on differences of log-ratios; every pair alike."""

    tau: Annotated[float, Gt(0)] = 0.1
    """Strength of the pull to the reference, per nat: the difference of log-ratios is pulled to 1 / (2 tau) nats."""

    log_ratio: Literal["sum", "mean"] = "sum"
    """Of an answer: the sum over its tokens, as in the paper's equation, or the mean."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    @property
    def start(self) -> float | None:
        return 1 / (2 * self.tau) ** 2

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, ref_logp, pairs = out.get("logp"), batch.column("ref_logp"), Pairs.of(batch)
        of_answer = batch.per_sequence(logp - ref_logp) if self.log_ratio == "sum" else per_answer_token(batch, logp - ref_logp)
        chosen, rejected = pairs.split(of_answer)
        stats = pairs.stats(logp, self.tau * chosen, self.tau * rejected) | distance(batch, logp, ref_logp)
        return Loss(ipo(chosen, rejected, tau=self.tau), stats)
