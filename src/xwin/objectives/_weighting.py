"""How tokens share a step: each alike, each answer alike, or each answer's sum over a fixed length."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge
from pydantic import Field
from torch import Tensor

from xwin.data.batch import Batch
from xwin.objectives.base import Weighting, token_mean
from xwin.spec import Spec


class TokenMean(Spec):
    """Every trained token alike, so a long answer weighs more (Yu et al. 2025, arXiv:2503.14476, equation 8: DAPO)."""

    kind: Literal["token_mean"] = "token_mean"

    def weigh(self, batch: Batch) -> Weighting:
        """weight = mask, count = trained tokens. [T]"""
        return token_mean(batch)


class SequenceMean(Spec):
    """Every answer alike, its tokens sharing it (Shao et al. 2024, arXiv:2402.03300, equation 3: GRPO as published).

    A token of a long answer counts less, so long wrong answers are punished less (Liu et al. 2025, arXiv:2503.20783, section 3.1).
    """

    kind: Literal["sequence_mean"] = "sequence_mean"

    def weigh(self, batch: Batch) -> Weighting:
        """weight = mask / trained tokens of the answer, count = answers. [T]"""
        trained = trained_tokens(batch)
        share = batch.per_token(trained.clamp(min=1).reciprocal())
        return Weighting(share * batch.mask, (trained > 0).sum())


class FixedLength(Spec):
    """Every answer's sum over one constant, which favours no length (Liu et al. 2025, arXiv:2503.20783, section 3.2: Dr. GRPO)."""

    kind: Literal["fixed_length"] = "fixed_length"

    tokens: Annotated[int, Ge(1)]
    """The constant, tokens; the paper takes the longest answer allowed. Another one only scales the loss."""

    def weigh(self, batch: Batch) -> Weighting:
        """weight = mask / tokens, count = answers. [T]"""
        return Weighting(batch.mask / self.tokens, (trained_tokens(batch) > 0).sum())


TokenWeighting: TypeAlias = Annotated[TokenMean | SequenceMean | FixedLength, Field(discriminator="kind")]


def trained_tokens(batch: Batch) -> Tensor:
    """[S] trained tokens of each segment, fp32; 0 for one that is only somebody's parent."""
    return batch.per_sequence(batch.mask.float())


def per_answer_token(batch: Batch, x: Tensor) -> Tensor:
    """[T] -> [S]: mean over the trained tokens of each segment; 0 where nothing is trained."""
    return batch.per_sequence(x) / trained_tokens(batch).clamp(min=1)


def answer_mean(batch: Batch) -> Weighting:
    """Every answer weighs the same. [S]"""
    trained = trained_tokens(batch) > 0
    return Weighting(trained.float(), trained.sum())
