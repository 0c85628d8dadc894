"""Supervised fine-tuning: cross-entropy of the assistant's tokens, every trained token alike."""

from __future__ import annotations

from xwin.data.batch import Batch, Outputs
from xwin.objectives.base import Loss, Objective


class Sft(Objective):
    """Maximum likelihood of the answers.  L_t = -log pi(a_t | before)"""

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(-out.get("logp"), {})
