"""The shape of a network, from its config.json alone: how many parameters it has, where, and how many of them a stage trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwin.models._llama import LlamaShape

if TYPE_CHECKING:
    from xwin.models.tuning import Full, LastLayers, LoRA

KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` whose layers are those of Llama: RMS norms, rotary embedding, grouped-query attention, gated MLP."""


class UnknownShape(ValueError):
    """The config does not say what is needed; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """A decoder of Llama's kind.  Example: SmolLM2-135M has 106,168,320 weights in 210 matrices and 28,311,552 in its tied embedding."""

    llama: LlamaShape
    tied: bool
    """Whether the embedding is the output matrix, too."""
    extra: int = 0
    """Parameters of a layer beside its matrices and two norms: biases, norms of heads."""
    writes: bool = True
    """False for a reward model: it has no output matrix."""

    @property
    def query(self) -> int:
        """Width of all heads together."""
        return self.llama.heads * self.llama.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.llama.kv_heads * self.llama.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of the matrices of a layer."""
        d, f = self.llama.hidden, self.llama.intermediate
        attention = {"q_proj": (d, self.query), "k_proj": (d, self.key), "v_proj": (d, self.key), "o_proj": (self.query, d)}
        return attention | {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}

    @property
    def layer_matrices(self) -> int:
        """Parameters in the matrices of one layer."""
        return sum(i * o for i, o in self.linear.values())

    @property
    def layer(self) -> int:
        """All parameters of one layer."""
        return self.layer_matrices + 2 * self.llama.hidden + self.extra

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of all layers: what is held and multiplied in the compute type."""
        return self.llama.layers * self.layer_matrices

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the output matrix where that is another one."""
        return self.llama.vocab * self.llama.hidden

    @property
    def parameters(self) -> int:
        """All of the network; a scalar head put on it counts apart."""
        output = self.embedding if self.writes and not self.tied else 0
        score = 0 if self.writes else self.llama.hidden
        return self.llama.layers * self.layer + self.llama.hidden + self.embedding + output + score

    def trained(self, tune: Full | LoRA | LastLayers | None, *, scalar: bool) -> int:
        """Parameters that a stage marks as trained.

        Args:
            tune: as the stage says; None = it trains nothing.
            scalar: whether a scalar head is put on the network.
        """
        if tune is None:
            return 0
        head = self.llama.hidden if scalar else 0
        if tune.kind == "full":
            unread = self.embedding if scalar and self.writes and not self.tied else 0
            return self.parameters + head - unread
        return (self.adapters(tune) if tune.kind == "lora" else self._last(tune) * self.layer) + head

    def adapters(self, tune: LoRA) -> int:
        """Parameters of low-rank adapters: rank x (in + out) for each matrix that has one."""
        targets = tune.targets or tuple(self.linear)
        return self.llama.layers * sum(tune.rank * sum(self.linear.get(name, (0, 0))) for name in targets)

    def reached(self, tune: Full | LoRA | LastLayers | None) -> int:
        """Layers that the backward pass goes through."""
        if tune is None:
            return 0
        return self._last(tune) if tune.kind == "last" else self.llama.layers

    def _last(self, tune: LastLayers) -> int:
        return min(tune.layers, self.llama.layers)


def read_shape(config: Mapping[str, Any]) -> NetworkShape:
    """The shape that config.json tells.

    Raises:
        UnknownShape: another architecture, or a config that lacks what is needed.
    """
    outer, config = config, config.get("text_config") or config
    kind = config.get("model_type", "")
    if kind not in KNOWN:
        raise UnknownShape(f"the architecture '{kind or 'without a name'}' is not one of {', '.join(KNOWN)}")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        llama = LlamaShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab=int(config["vocab_size"]),
            context=int(config.get("max_position_embeddings") or 0),
            rope_theta=0.0,  # does not change a size
            norm_eps=0.0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownShape(f"its config.json lacks {error}") from error
    names = [str(name) for name in outer.get("architectures") or ()]
    tied = bool(outer.get("tie_word_embeddings", config.get("tie_word_embeddings")))
    shape = NetworkShape(llama, tied, writes=not any("SequenceClassification" in name for name in names))
    extra = _biases(shape, config) + (2 * llama.head_dim if kind == "qwen3" else 0)
    return NetworkShape(llama, shape.tied, extra, shape.writes)


def _biases(shape: NetworkShape, config: Mapping[str, Any]) -> int:
    """Qwen2 has biases on queries, keys and values always; Llama and Qwen3 where the config says so, on the output, too."""
    kind, d, f = config["model_type"], shape.llama.hidden, shape.llama.intermediate
    attention = shape.query + 2 * shape.key if kind == "qwen2" else 0
    if kind in {"llama", "qwen3"} and config.get("attention_bias"):
        attention = shape.query + 2 * shape.key + d
    return attention + (2 * f + d if kind == "llama" and config.get("mlp_bias") else 0)
