"""A transformers model that reads packed batches: load, forward(batch) -> Outputs, save as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from xwin.data.batch import Batch, Outputs
from xwin.errors import ModelError
from xwin.models import adapters, attention
from xwin.models.heads import ScalarHead, read_reward_stats
from xwin.models.lean import slim
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA, merged, round_frozen
from xwin.models.weights import write_weights
from xwin.ops import token_logp, uniform_logp

Head: TypeAlias = Literal["language", "value", "score"]
"""What a network says: words, what a token is worth, what an answer is worth."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files of a model's folder that its weights leave as they are."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PackedModel(nn.Module):
    """A network and, for a critic or a reward model, a scalar head.

    Linear layers compute in `dtype`; the residual stream, norms, logits with their softmax are fp32, and so is every parameter that is trained.
    """

    def __init__(self, network: PreTrainedModel, head: ScalarHead | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.head, self.dtype = network, head, dtype
        masters = round_frozen(network, dtype)
        trained = any(p.requires_grad for p in self.parameters())
        self.masters: Mapping[str, Tensor] = masters if trained else {}  # a model that only reads is never published
        self.eval()  # dropout off everywhere: old log-probs, reference and update must be the same function

    def autocast(self) -> torch.autocast:
        """The compute type as a context."""
        device_type = next(self.network.parameters()).device.type
        return torch.autocast(device_type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def output(self) -> nn.Linear:
        """The output embedding of a language model.

        Raises:
            ModelError: the network has none, as a reward model's.
        """
        head = self.network.get_output_embeddings() if hasattr(self.network, "get_output_embeddings") else None
        if not isinstance(head, nn.Linear):
            raise ModelError("this model writes no text: it has no output embedding", fix="point the stage at a language model")
        return head

    def hidden(self, batch: Batch) -> Tensor:
        """[T, d] last hidden state of every token."""
        with self.autocast():
            plan = attention.PackedPlan(batch)
            body = self.network.base_model
            out = body(input_ids=batch.tokens[None], position_ids=batch.position[None], use_cache=False, plan=plan)
        return out.last_hidden_state[0].float()

    def forward(self, batch: Batch, reads: frozenset[str]) -> Outputs:
        """What the model says about the batch.

        Args:
            batch: T tokens, S segments.
            reads: of logp, entropy, value, score, uniform.
        """
        hidden = self.hidden(batch)
        logp = entropy = value = score = uniform = None
        rows = batch.mask.nonzero().squeeze(1)
        before, blank = hidden[batch.source[rows]], torch.zeros_like(hidden[:, 0])
        if reads & {"logp", "entropy", "uniform"}:
            head, tokens = self.output, batch.tokens[rows]
            said, spread = token_logp(
                before, head.weight, head.bias, tokens, temperature=batch.temperature, entropy="entropy" in reads, dtype=self.dtype
            )
            logp = blank.index_copy(0, rows, said)
            if spread is not None:
                entropy = blank.index_copy(0, rows, spread)
            if "uniform" in reads:
                mean = uniform_logp(said, before, head.weight, head.bias, tokens, temperature=batch.temperature)
                uniform = blank.index_copy(0, rows, mean)
        if "value" in reads:
            value = blank.index_copy(0, rows, self._scalar(before))
        if "score" in reads:
            score = self._scalar(hidden[batch.last]).clone()  # no view leaves a sharded model: written to, it would lose its gradient
        return Outputs(logp, entropy, value, score, uniform)

    def _scalar(self, hidden: Tensor) -> Tensor:
        if self.head is None:
            raise ModelError("this model has no scalar head", fix="point the stage at a reward model")
        return self.head(hidden)

    def plain(self) -> dict[str, Tensor]:
        """Parameter name of the plain network -> fp32 tensor, adapters merged."""
        return merged(self.network, self.masters)


def load(folder: Path, *, head: Head, tuning: Full | LoRA | LastLayers | Frozen, dtype: str, head_seed: int = 0, heads: int = 1) -> PackedModel:
    """A Hugging Face folder as a PackedModel. Adapters are drawn from torch's global generator, the head from `head_seed`.

    Args:
        folder: of a causal language model or of a reward model; a head of the kind asked for is kept, else a new one is drawn.
        head: "language" for a policy, "value" for a critic, "score" for a reward model.
        tuning: what is trained.
        dtype: "float32" or "bfloat16", the type of matrix products.
        head_seed: seed of a new scalar head.
        heads: of a new reward model, more than one for an ensemble.

    Raises:
        ModelError: the folder cannot be loaded, its model does something the packed path does not do, or nothing of it would be trained.
    """
    if head == "language" and isinstance(tuning, LastLayers) and not tuning.layers:
        raise ModelError("nothing of the model would be trained: it has no scalar head", "tune.layers", "set it above 0")
    network, scalar = _networks(folder, head, head_seed, heads)
    _require_plain(network, folder)
    _require_finite(network, folder)
    tuning.apply(network)
    slim(network, DTYPES[dtype])
    if scalar is not None:
        scalar.requires_grad_(not isinstance(tuning, Frozen))
        _leave_words(network)
    return PackedModel(network, scalar, DTYPES[dtype])


def _networks(folder: Path, head: Head, head_seed: int, heads: int) -> tuple[PreTrainedModel, ScalarHead | None]:
    options = {"dtype": torch.float32, "attn_implementation": attention.NAME, "trust_remote_code": False, "use_safetensors": True}
    transformers_logging.disable_progress_bar()  # our console shows what is going on
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        rewards = any("SequenceClassification" in name for name in config.architectures or ())
        family = AutoModelForSequenceClassification if rewards else AutoModelForCausalLM
        network = family.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot be loaded: {str(error).splitlines()[0]}", str(folder)) from error
    if head == "language":
        if rewards:
            raise ModelError("is a reward model, but a language model is needed", str(folder))
        return network, None
    width = network.config.get_text_config().hidden_size
    if head == "score" and rewards:
        return network, ScalarHead(network.get_parameter("score.weight"), read_reward_stats(folder))
    return network, ScalarHead.drawn(width, head_seed, heads)


def _leave_words(network: PreTrainedModel) -> None:
    """Freezes an output matrix of a network that gives scores: nobody reads it, and it would have moments without ever having a gradient."""
    words = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    if words is not None and words.weight is not network.get_input_embeddings().weight:
        words.requires_grad_(requires_grad=False)


def _require_plain(network: PreTrainedModel, folder: Path) -> None:
    """Sees to it that samples of a pack can only meet in attention, and that logits are a plain product."""
    config = network.config.get_text_config()
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1.0):
            raise ModelError(f"the architecture {config.model_type} uses {name}, which packed training does not compute", str(folder))
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if network._is_stateful or others or not network._supports_attention_backend:  # it says so nowhere else
        found = ", ".join(sorted(others)) or "layers that are not attention"
        what = f"the architecture {config.model_type} has {found}, in which the samples of a pack would mix"
        raise ModelError(what, str(folder), "use a model whose layers are attention, such as a llama, mistral or qwen2")


def _require_finite(network: PreTrainedModel, folder: Path) -> None:
    bad = next((name for name, parameter in network.named_parameters() if not parameter.isfinite().all()), None)
    if bad is not None:
        raise ModelError(
            f"the weight {bad} holds numbers that are not finite", str(folder), "fetch or make the model again: it was broken when written"
        )


def save(model: PackedModel, tokenizer: Path, to: Path) -> None:
    """Writes safetensors, config and tokenizer: what `from_pretrained` loads. A scalar head makes it a sequence classifier.

    Args:
        model: adapters are merged in fp32, and written beside as a peft folder, `adapter/`.
        tokenizer: folder whose tokenizer files go along.
        to: a folder that does not exist yet.
    """
    to.mkdir(parents=True)
    for name in COMPANIONS:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, to / name)
    tensors = model.plain()
    config = model.network.config.__class__.from_dict(model.network.config.to_dict())
    if model.head is not None:
        tensors = {name: t for name, t in tensors.items() if name.startswith(f"{model.network.base_model_prefix}.")}
        tensors["score.weight"] = model.head.weight.detach().float()
        model.head.write(to, config)
    elif config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if model.head is None:
        config.architectures = [type(model.network).__name__]
    write_weights(to / "model.safetensors", tensors, {"format": "pt"})
    if adapters.adapted(model.network):
        adapters.write_adapters(model.network, to / adapters.FOLDER, tensors.get("score.weight"))
    config.dtype = torch.float32
    config.save_pretrained(to)
