"""Log-probabilities of the unfiltered, temperature-scaled distribution, out of vLLM.

vLLM tells either what the network said before temperature (`raw_*`) or what was left after the filters (`processed_*`); what a learner
must compare with is between the two. This processor runs before both: it puts  T log softmax(z / T)  in the place of the logits z, which
changes no draw, since a softmax does not see what is added to all logits. vLLM then divides by T, masks what top_k, top_p and min_p
leave out, and with `logprobs_mode: processed_logits` tells the number that is left: log softmax(z / T) of the sampled token.

Imported by vLLM itself, in each of its workers.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

_vllm: Any = importlib.import_module("vllm.v1.sample.logits_processor") if importlib.util.find_spec("vllm") else None
_Processor: Any = _vllm.LogitsProcessor if _vllm else object


class Unfiltered(_Processor):
    """See the head of this file. vLLM makes one for its batch of rows and tells it which requests come, go and move."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: Any) -> None:
        self.device = device
        self.temperatures: dict[int, float] = {}
        """Row -> T of its request; 1 where it is greedy: vLLM divides by nothing then."""
        self.column = torch.ones(0, 1, device=device)

    def is_argmax_invariant(self) -> bool:
        """It is, but vLLM skips those for a batch of greedy requests, whose log-probabilities are wanted, too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        if _vllm.process_dict_updates(self.temperatures, batch_update, lambda params, *_: params.temperature or 1.0):
            rows = max(self.temperatures, default=-1) + 1
            self.column = torch.tensor([[self.temperatures.get(row, 1.0)] for row in range(rows)], device=self.device)

    def apply(self, logits: Tensor) -> Tensor:
        """[rows, V] fp32 -> the same shape."""
        column = self.column[: len(logits)]
        return (logits / column).log_softmax(-1) * column
