"""The scalar head of a critic or a reward model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

STATS = "reward_stats.json"


@dataclass(frozen=True, slots=True)
class RewardStats:
    """Mean and spread of a reward model's scores on its own training answers: Bradley-Terry fixes neither zero nor unit."""

    mean: float = 0.0
    std: float = 1.0


class ScalarHead(nn.Module):
    """hidden [N, d] -> [N], in fp32, without bias: the form that sequence classifiers of transformers have."""

    def __init__(self, weight: Tensor, stats: RewardStats) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.stats = stats

    @classmethod
    def drawn(cls, width: int, seed: int) -> ScalarHead:
        """A new head, normal with standard deviation 1 / sqrt(d + 1), scaled so that first scores are small (arXiv:2009.01325, section 3)."""
        weight = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5
        return cls(weight * 0.1, RewardStats())

    @classmethod
    def of(cls, weight: Tensor, stats: RewardStats) -> ScalarHead:
        """The head of a trained reward model."""
        return cls(weight, stats)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N]"""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight).squeeze(-1)

    def write(self, to: Path, config: PreTrainedConfig) -> None:
        """Puts what the head needs into the config and the folder of a sequence classifier, whose tokenizer is there already."""
        prefix = type(self)._family(config)
        config.architectures = [f"{prefix}ForSequenceClassification"]
        config.num_labels = 1
        config.pad_token_id = _pad_other_than_eos(config, to)
        (to / STATS).write_text(json.dumps({"mean": self.stats.mean, "std": self.stats.std}))

    @staticmethod
    def _family(config: PreTrainedConfig) -> str:
        name = (config.architectures or ["Llama"])[0]
        for suffix in ("ForCausalLM", "ForSequenceClassification"):
            name = name.removesuffix(suffix)
        return name


def read_reward_stats(folder: Path) -> RewardStats:
    """What a reward model's folder says of its scores; mean 0 and spread 1 when it says nothing."""
    path = folder / STATS
    return RewardStats(**json.loads(path.read_text())) if path.exists() else RewardStats()


def _pad_other_than_eos(config: PreTrainedConfig, folder: Path) -> int:
    """A padding id that no answer ends with, and the same one for the tokenizer of the folder.

    transformers' classifiers read the last token that is not padding. With pad = eos they would skip the end of turn and score the token
    before it; were only the tokenizer's pad still eos, they would score the padding.
    """
    eos = config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    special = {i: name for i, name in _special_tokens(folder).items() if i not in ends and i < config.vocab_size}
    if config.pad_token_id is not None and config.pad_token_id not in ends:
        pad = config.pad_token_id
    else:  # a word of the vocabulary will do for the model, which reads from the end, but a tokenizer would no longer write it
        pad = min(special, default=next(i for i in range(config.vocab_size) if i not in ends))
    if pad in special:
        _name_pad(folder, special[pad])
    return pad


def _special_tokens(folder: Path) -> dict[int, str]:
    path = folder / "tokenizer.json"
    tokens = json.loads(path.read_text(encoding="utf-8"))["added_tokens"] if path.exists() else []
    return {token["id"]: token["content"] for token in tokens if token["special"]}


def _name_pad(folder: Path, token: str) -> None:
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if path.exists():
            settings = json.loads(path.read_text(encoding="utf-8")) | {"pad_token": token}
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
