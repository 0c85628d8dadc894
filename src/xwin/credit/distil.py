"""On-policy distillation: on the student's own answers every token is judged by the teacher; no score, no critic, one answer per prompt is enough.

Agarwal et al. 2024, arXiv:2306.13649, section 3: the student's samples alone (lambda = 1) and the reverse KL, KL(student || teacher) at each
token given what the student wrote before it. Its gradient there, in the form of "k1 in the reward" (Liu et al. 2025, arXiv:2510.01555), is

    A_t = log teacher(a_t) - log pi_old(a_t),  gradient of the KL = -E[A_t d log pi(a_t)]

Deviation: one sampled token stands for the sum over the vocabulary: the same gradient in the mean, from two numbers a token. As in the paper
no token is blamed for what it leads to. The teacher is the stage's reference: it reads the prompt in the student's template and must have
its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from xwin.credit._correction import Correction, credited
from xwin.credit.base import Columns, Credit, Credited, prices
from xwin.data.rollout import Group
from xwin.ops import Estimator


class Distil(Credit):
    """A token is as good as the teacher finds it more likely than the student did. Scores, where there are any, are shown and teach nothing."""

    correction: Correction | None = None
    """What is done about an engine whose log-probs are not the learner's; null = nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "ref_logp"})
    gives: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})

    def assign(self, groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> Credited:
        """See Credit. No price is paid: it would be the same KL once more."""
        rollouts = [r for group in groups for r in group.rollouts]
        tokens = [-price for price in prices(groups, columns, 1.0)]
        return credited(self.correction, rollouts, columns, tokens, torch.cat(tokens))
