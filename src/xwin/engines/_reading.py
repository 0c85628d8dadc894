"""What a decoder runs: tokens in, last hidden states and logits out.

A decoder of Llama's kind is gone through here with few, large operations: queries, keys and values are one product, and on a CPU in bfloat16 the
matrices are packed once for products with few rows. Every other network runs as transformers wrote it. Which it is, is tried out and not believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from xwin.data.batch import Sample, pack
from xwin.engines._cache import PAGE, Cache, DecodePlan
from xwin.models.attention import PackedPlan, Plan
from xwin.models.causal import PackedModel
from xwin.models.lean import GatedMLP, RMSNorm

FEWEST = 4
"""Rows that are computed at least in fp32: products of fewer take another kernel, with other last bits."""

HINT = 32
"""Rows of a product that packed matrices are laid out for."""

ALIKE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Relative difference of hidden states to those of the network as it was written, that rounding may make. In bfloat16 both are up to a tenth away
from what fp32 says; another function would be as far away as the states are long."""

TRIED = 16
"""Tokens that a network is tried out with."""

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class Matrix:
    """Linear layers that read the same, as one product."""

    def __init__(self, *parts: nn.Linear) -> None:
        self.parts = parts
        self.dtype = parts[0].weight.dtype
        self.pack()

    def pack(self) -> None:
        """Reads the weights, and reads them again when others were loaded."""
        weights = [part.weight.data for part in self.parts]
        biases = [part.bias.data for part in self.parts if part.bias is not None]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = torch.cat(biases).to(self.dtype) if biases else None
        self.packed = can_pack(self.weight)
        if self.packed:
            self.weight = packed(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        if not self.packed:
            return linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def swish(self, x: Tensor) -> Tensor:
        """silu of the product."""
        if not self.packed:
            return silu(self(x))
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "swish", [], "")  # type: ignore[no-any-return]

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product, times another tensor of its shape."""
        if not self.packed:
            return self(x).mul_(other)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")  # type: ignore[no-any-return]


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has products of packed bfloat16 matrices."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed(weight: Tensor) -> Tensor:
    """The matrix in blocks, as products with few rows read it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, HINT)  # type: ignore[no-any-return]


class Layer:
    """One layer of a decoder of Llama's kind."""

    def __init__(self, layer: Any, index: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.width = index, int(attention.head_dim)
        self.scale: float = 0.0
        self.window: int | None = None
        """Both are noted when the network is tried out."""
        self.heads = attention.q_proj.out_features // self.width
        self.shared = attention.k_proj.out_features // self.width
        self.norms: tuple[RMSNorm, RMSNorm] = (layer.input_layernorm, layer.post_attention_layernorm)
        self.head_norms: list[RMSNorm] = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        self.enter, self.leave = Matrix(attention.q_proj, attention.k_proj, attention.v_proj), Matrix(attention.o_proj)
        self.gate, self.up, self.down = Matrix(mlp.gate_proj), Matrix(mlp.up_proj), Matrix(mlp.down_proj)

    def matrices(self) -> tuple[Matrix, ...]:
        """All of them."""
        return self.enter, self.leave, self.gate, self.up, self.down

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
        """[B, L, d] -> [B, L, d], the residual stream in fp32; `turn`: see `_rotated`."""
        dtype = self.enter.dtype
        read = self.enter(_normed(x, self.norms[0]).to(dtype)).unflatten(-1, (-1, self.width))
        turned, value = read.split([self.heads + self.shared, self.shared], -2)
        if self.head_norms:
            q, k = (_normed(part, norm) for part, norm in zip(turned.split([self.heads, self.shared], -2), self.head_norms, strict=True))
            turned = torch.cat([q, k], -2)
        query, key = _rotated(turned.float(), *turn).to(dtype).transpose(1, 2).split([self.heads, self.shared], 1)
        seen = plan.attend(self.index, query, key, value.transpose(1, 2), scale=self.scale, window=self.window)
        x = x + self.leave(seen.flatten(-2))
        y = _normed(x, self.norms[1]).to(dtype)
        return x + self.down(self.up.times(y, self.gate.swish(y)))


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    return rms_norm(x.float(), norm.weight.shape, norm.weight, norm.eps)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864), halves of a head paired as Llama's weights have them.

    Args:
        x: [B, L, H, D]
        cosine: [B, L, 1, D] of the places.
        sine: the same; negative in the first half.
    """
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine


@dataclass
class Lean:
    """The layers of a decoder of Llama's kind."""

    body: Any
    layers: list[Layer]

    @classmethod
    def of(cls, model: PackedModel) -> Lean | None:
        """None where the network is of another kind."""
        body: Any = model.network.base_model
        stack = list(getattr(body, "layers", ()))
        if not stack or not all(_is_llama(layer) for layer in stack) or not isinstance(getattr(body, "norm", None), RMSNorm):
            return None
        return cls(body, [Layer(layer, i) for i, layer in enumerate(stack)])

    def __call__(self, tokens: Tensor, position: Tensor, plan: Plan) -> Tensor:
        """[B, L] -> [B, L, d] fp32"""
        x = self.body.embed_tokens(tokens).float()
        cosine, sine = (part.float()[:, :, None] for part in self.body.rotary_emb(x, position))
        one, other = sine.chunk(2, -1)
        turn = cosine, torch.cat([-one, other], -1)
        for layer in self.layers:
            x = layer(x, turn, plan)
        return _normed(x, self.body.norm)


def _is_llama(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    if parts.keys() != LAYER or not isinstance(parts["mlp"], GatedMLP):
        return False
    attention: Any = parts["self_attn"]
    linears = {name: part for name, part in attention.named_children() if isinstance(part, nn.Linear)}
    norms = [part for name, part in attention.named_children() if name not in linears]
    plain = linears.keys() == ATTENTION and all(isinstance(part, RMSNorm) for part in [*norms, parts["input_layernorm"]])
    return plain and len({(part.weight.dtype, type(part)) for part in linears.values()}) == 1 and hasattr(attention, "head_dim")


@dataclass(frozen=True)
class Noted:
    """A plan that notes what each layer of a network asks for."""

    plan: Plan
    asked: dict[int, tuple[float, int | None]] = field(default_factory=dict)
    """layer -> scale and window"""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See models.attention.Plan."""
        self.asked[layer] = scale, window
        return self.plan.attend(layer, query, key, value, scale=scale, window=window)


class Reading:
    """A network as a decoder uses it."""

    def __init__(self, model: PackedModel) -> None:
        self.model, self.head = model, model.output
        self.device = self.head.weight.device
        self.vocabulary = self.head.weight.shape[0]
        self.lean = self._tried(Lean.of(model))
        self.table: Tensor | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Reads the network's weights again."""
        for matrix in (m for layer in (self.lean.layers if self.lean else ()) for m in layer.matrices()):
            matrix.pack()
        if self.model.dtype == torch.bfloat16 and self.head.bias is None:
            weight = self.head.weight.to(torch.bfloat16)
            if can_pack(weight):
                ones = torch.zeros(len(weight), 32, dtype=torch.bfloat16)
                ones[:, 0] = 1.0
                self.table = packed(torch.cat([weight, ones], 1))

    @property
    def fewest(self) -> int:
        """Rows that are computed at least; of rounded products, where no bits are promised, one."""
        return 1 if self.shifts else FEWEST

    @cached_property
    def place_bytes(self) -> int:
        """Bytes that one token of one row takes in the cache: of any network, found by writing one."""
        cache, token = Cache(1, 1), torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            self.hidden(token, token, DecodePlan.of(cache, [0], self.device))
        return cache.bytes // PAGE

    def hidden(self, tokens: Tensor, position: Tensor, plan: Plan) -> Tensor:
        """[B, L] -> [B, L, d] fp32"""
        return self._plain(tokens, position, plan) if self.lean is None else self.lean(tokens, position, plan)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, d] -> [B, V] fp32, exact."""
        return linear(hidden, self.head.weight, self.head.bias)

    @property
    def shifts(self) -> bool:
        """Whether `shifted` subtracts anything."""
        return self.table is not None

    def shifted(self, hidden: Tensor, near: Sequence[float]) -> Tensor:
        """Logits less a number of each row, which changes no probability.

        The nearer that number to the largest logit, the finer bfloat16 tells the likely ones apart: at 20 its steps are 1/8, at 1 they are 1/128.
        It is subtracted inside the product, where sums are fp32.

        Args:
            hidden: [B, d]
            near: [B] about the largest logit.

        Returns:
            [B, V] fp32, or bfloat16 where products of that type are packed.
        """
        if self.table is None:
            return self.logits(hidden)
        shift = hidden.new_zeros(len(hidden), 32)
        shift[:, 0] = -torch.tensor(near)
        return torch.ops.mkldnn._linear_pointwise.default(torch.cat([hidden, shift], 1).bfloat16(), self.table, None, "none", [], "")  # type: ignore[no-any-return]

    def _plain(self, tokens: Tensor, position: Tensor, plan: Plan) -> Tensor:
        with self.model.autocast():
            out = self.model.network.base_model(input_ids=tokens, position_ids=position, use_cache=False, plan=plan)
        return out.last_hidden_state.float()

    @torch.no_grad()
    def _tried(self, lean: Lean | None) -> Lean | None:
        """The lean layers where they say what the network says."""
        if lean is None:
            return None
        ids = tuple(i * self.vocabulary // TRIED for i in range(TRIED))
        batch = pack([Sample("", ids, (False,) * TRIED)], tokens=TRIED)[0].to(self.device)
        tokens, position, plan = batch.tokens[None], batch.position[None], Noted(PackedPlan(batch))
        expected = self._plain(tokens, position, plan)
        for layer in lean.layers:
            layer.scale, layer.window = plan.asked[layer.index]
        found = lean(tokens, position, plan)
        return lean if bool((found - expected).norm() <= ALIKE[self.model.dtype] * expected.norm()) else None
