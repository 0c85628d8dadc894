"""The scalar head of a critic, and the head or heads of a reward model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from xwin.errors import ModelError

STATS = "reward_stats.json"


@dataclass(frozen=True, slots=True)
class RewardStats:
    """What the raw scores of a reward model mean. Bradley-Terry fixes neither their zero nor the unit they are best compared in.

    Example, of an ensemble of two heads that was calibrated: RewardStats(0.3, 1.2, offsets=(-0.1, 0.1), temperature=1.4, even=0.3)
    """

    mean: float = 0.0
    """Of the scores of training answers, over all heads."""
    std: float = 1.0
    """Spread of those answers, each by the mean of its heads."""
    offsets: tuple[float, ...] = ()
    """Of each head of an ensemble, the mean of its scores less `mean`: what no two heads have in common; () = nothing is taken off."""
    temperature: float | None = None
    """Raw units per nat of log-odds, fitted on held-out answers; None = not calibrated."""
    even: float = 0.0
    """Raw score that is a probability of one half, where there is a temperature."""

    def standard(self, raw: Tensor) -> Tensor:
        """[N, K] raw scores -> [N, K] in units of the spread, the mean training answer at 0."""
        return (self._levelled(raw) - self.mean) / self.std

    def probability(self, raw: Tensor) -> Tensor:
        """[N, K] raw scores of a calibrated model -> [N, K] the chance that the answer is right; of a model of preferences, that it beats an
        answer of the mean score."""
        assert self.temperature is not None, "a model without a temperature gives no probabilities"
        return torch.sigmoid((self._levelled(raw) - self.even) / self.temperature)

    def _levelled(self, raw: Tensor) -> Tensor:
        return raw - torch.tensor(self.offsets or (0.0,) * raw.shape[1], dtype=raw.dtype)

    def to_json(self) -> dict[str, float | list[float]]:
        """What a plain reward model of one head has, mean and std, and the rest where there is any."""
        offsets = {"offsets": list(self.offsets)} if self.offsets else {}
        calibrated = {} if self.temperature is None else {"temperature": self.temperature, "even": self.even}
        return {"mean": self.mean, "std": self.std, **offsets, **calibrated}


class ScalarHead(nn.Module):
    """hidden [N, d] -> [N], in fp32, without bias: the form that sequence classifiers of transformers have. An ensemble of K gives [N, K]."""

    def __init__(self, weight: Tensor, stats: RewardStats) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.stats = stats

    @property
    def heads(self) -> int:
        """K, 1 but for an ensemble."""
        return self.weight.shape[0]

    @classmethod
    def drawn(cls, width: int, seed: int, heads: int = 1) -> ScalarHead:
        """New heads, normal with standard deviation 1 / sqrt(d + 1), scaled so that first scores are small (arXiv:2009.01325, appendix B.1)."""
        weight = torch.randn(heads, width, generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5
        return cls(weight * 0.1, RewardStats())

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N], or [N, K] where there are several heads."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight).squeeze(-1)

    def write(self, to: Path, config: PreTrainedConfig) -> None:
        """Puts what the head needs into the config and the folder of a sequence classifier, whose tokenizer is there already."""
        prefix = type(self)._family(config)
        config.architectures = [f"{prefix}ForSequenceClassification"]
        config.num_labels = self.heads
        config.pad_token_id = _pad_other_than_eos(config, to)
        (to / STATS).write_text(json.dumps(self.stats.to_json()))

    @staticmethod
    def _family(config: PreTrainedConfig) -> str:
        name = (config.architectures or ["Llama"])[0]
        for suffix in ("ForCausalLM", "ForSequenceClassification"):
            name = name.removesuffix(suffix)
        return name


def read_reward_stats(folder: Path) -> RewardStats:
    """What a reward model's folder says of its scores; mean 0 and spread 1 when it says nothing.

    Raises:
        ModelError: the file is not what `RewardStats.to_json` gives.
    """
    path = folder / STATS
    if not path.exists():
        return RewardStats()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        temperature = None if found.get("temperature") is None else float(found["temperature"])
        offsets = tuple(map(float, found.get("offsets", ())))
        return RewardStats(float(found["mean"]), float(found["std"]), offsets, temperature, float(found.get("even", 0.0)))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"does not say what scores mean: {error}", str(path), "publish the reward model again, or write mean and std") from error


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
