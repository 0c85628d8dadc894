"""Batches of judged answers in which the log-probability of every token is chosen by hand, and trl's losses to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xwin.data.batch import Batch, Outputs, Sample, pack

PROMPT = (1, 5, 9)


def answer(name: str, logp: Sequence[float], ref_logp: Sequence[float], bond: str | None, **columns: float) -> Sample:
    """A sample whose answer has these log-probs; `logp` is kept as a column for `said`."""
    zeros = (0.0,) * len(PROMPT)
    per_token = {"logp": (*zeros, *logp), "ref_logp": (*zeros, *ref_logp)}
    tokens, mask = PROMPT + tuple(range(20, 20 + len(logp))), (False,) * len(PROMPT) + (True,) * len(logp)
    return Sample(name, tokens, mask, {**per_token, **columns}, bond)


def pair(name: str, chosen: Sequence[float], rejected: Sequence[float], ref_chosen: Sequence[float], ref_rejected: Sequence[float]) -> list[Sample]:
    """Chosen, then rejected."""
    return [answer(f"{name}/c", chosen, ref_chosen, name), answer(f"{name}/r", rejected, ref_rejected, name)]


def together(samples: Sequence[Sample]) -> Batch:
    """One batch, prompts not shared, so that the samples are its segments."""
    (batch,) = pack(samples, tokens=4096)
    return batch


def said(batch: Batch) -> tuple[Outputs, Tensor]:
    """The column `logp` as what the policy says, and the leaf that carries its gradient."""
    leaf = batch.column("logp").clone().requires_grad_()
    return Outputs(logp=leaf), leaf


def drawn(seed: int, count: int = 6) -> list[Sample]:
    """Pairs with answers of 1 to 7 tokens and random log-probs, the reference's some 0.3 from the policy's."""
    random = torch.Generator().manual_seed(seed)

    def row(length: int) -> list[float]:
        return (-torch.rand(length, generator=random) * 3).tolist()

    def near(values: list[float]) -> list[float]:
        return (torch.tensor(values) + 0.3 * torch.randn(len(values), generator=random)).tolist()

    rows = [(row(1 + k % 7), row(1 + (3 * k) % 7)) for k in range(count)]
    return [s for k, (c, r) in enumerate(rows) for s in pair(f"p{k}", c, r, near(c), near(r))]
