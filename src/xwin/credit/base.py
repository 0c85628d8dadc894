"""Credit: from scores of whole answers to an advantage per token. Pure: no model, no file, no randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xwin.data.batch import Sample
from xwin.data.rollout import Group, Rollout
from xwin.ops import ESTIMATORS, Estimator
from xwin.spec import Kind

Columns = Mapping[str, Sequence[Sequence[float]]]
"""Column name -> for each rollout, in order of groups and samples, one number per completion token [L]."""


@dataclass(frozen=True, slots=True)
class Credited:
    """What credit assignment returns: samples to train on, and numbers to show."""

    samples: tuple[Sample, ...]
    stats: Mapping[str, tuple[float, float]]
    """name -> (sum, count)."""


class Credit(Kind):
    """Settings of a way to assign credit. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.credit"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    """Columns the stage must compute first with Learner.forward: old_logp, ref_logp, value."""
    gives: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    """Columns its samples carry."""

    def assign(self, groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> Credited:
        """Samples with the columns that `gives` names.

        Args:
            groups: with every rollout's score filled in; no answer is empty.
            columns: what `needs` names; ref_logp too where a KL price is to be paid.
            kl_coef: price of one nat of KL to the reference, reward units per nat.
            estimator: of that KL, at each token.
        """
        raise NotImplementedError


LARGEST_GAP = 20.0
"""Nats. A reference that finds a token e^20 times as likely as the policy that wrote it asks for no more: k3 grows like e^gap."""


def prices(groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> list[Tensor]:
    """What each completion token pays for its KL: kl_coef * k(log pi_old, log ref), of which k1 = log pi_old - log ref may be negative.

    k1 in the reward has the gradient of KL(pi || ref); that of k2 and k3 is another one (Liu et al. 2025, arXiv:2510.01555).

    Returns:
        For each rollout [L] float64, reward units; zeros where there is no reference.
    """
    if "ref_logp" not in columns:
        return [torch.zeros(len(r.completion), dtype=torch.float64) for group in groups for r in group.rollouts]
    pairs = zip(columns["old_logp"], columns["ref_logp"], strict=True)
    return [kl_coef * _kl(torch.tensor(old, dtype=torch.float64), torch.tensor(ref, dtype=torch.float64), estimator) for old, ref in pairs]


def _kl(old: Tensor, ref: Tensor, estimator: Estimator) -> Tensor:
    """[L] nats."""
    return ESTIMATORS[estimator](old, ref if estimator == "k1" else ref.clamp(max=old + LARGEST_GAP))


def scores_of(group: Group) -> Tensor:
    """[n] scores of a group's answers, float64, reward units; 0 where there is none."""
    return torch.tensor([r.score.value if r.score else 0.0 for r in group.rollouts], dtype=torch.float64)


def to_sample(rollout: Rollout, columns: Mapping[str, Sequence[float]]) -> Sample:
    """A training sample of a rollout: only the completion is trained; columns are zero over the prompt.

    Args:
        rollout: prompt of P tokens, completion of L tokens.
        columns: name -> [L].
    """
    before = len(rollout.prompt)
    return Sample(
        f"{rollout.prompt_id}/{rollout.sample}",
        tokens=rollout.prompt + rollout.completion,
        mask=(False,) * before + (True,) * len(rollout.completion),
        columns={name: (0.0,) * before + tuple(values) for name, values in columns.items()},
    )
