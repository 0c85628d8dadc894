"""Local: an engine in this process, for any causal model of transformers. No extra package. Its loop is engines/_decoder.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from xwin.data._rules import open_tokenizer
from xwin.data.batch import Sample, pack
from xwin.data.rollout import Prompt, Rollout
from xwin.engines._decoder import Decoder, Limits, Text
from xwin.engines._reading import Reading
from xwin.engines.base import EngineKind, Request, Sampling
from xwin.errors import ModelError
from xwin.models import causal
from xwin.models.causal import PackedModel
from xwin.models.tuning import Frozen
from xwin.models.weights import Weights, require_shapes
from xwin.run.memory import available

SHARE = 0.8
"""Of the memory that is free when a decoder starts, what its cache may take."""


class Local(EngineKind):
    """Decodes in this process."""

    rows: Annotated[int, Ge(4)] = 96
    """Answers decoded together. More is faster until memory ends: a row of SmolLM2-135M holds 23 kB a token."""

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> LocalEngine:
        return LocalEngine(causal.load(model, head="language", tuning=Frozen(), dtype=dtype), tuple(stop), self.rows, decoding(model))


def decoding(model: Path) -> Text:
    """What writes tokens as text, special ones spelled out. The tokenizer of the folder is opened when it is first needed."""

    @cache
    def tokenizer() -> Any:
        return open_tokenizer(model)

    return lambda tokens: str(tokenizer().decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class LocalEngine:
    """See Engine and Continuous. Holds one frozen network. Without `text`, stop texts are refused."""

    def __init__(self, model: PackedModel, stop: tuple[int, ...], rows: int, text: Text | None = None) -> None:
        self.model, self.stop, self.rows, self.text = model, stop, rows, text
        self.version = 0
        self.context = int(getattr(model.network.config.get_text_config(), "max_position_embeddings", 1 << 30))
        self.reading = Reading(model)

    def load(self, weights: Weights) -> None:
        """See Engine.

        Raises:
            ModelError: the weights are of another network; the engine has its old ones.
        """
        if weights.folder is not None:
            fresh = causal.load(weights.folder, head="language", tuning=Frozen(), dtype="float32").plain()
        else:
            fresh = dict(weights.tensors or {})
        own = self.model.network.state_dict()
        require_shapes(*({name: t.shape for name, t in each.items()} for each in (fresh, own)))
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(fresh[name])
        self.reading.refresh()
        self.version = weights.version

    def close(self) -> None:
        """See Engine. The network goes with the object."""

    def batcher(self, tokens: int) -> Decoder:
        """See Continuous. Weights loaded later are not for answers that are being written.

        Raises:
            ModelError: the network cannot read so many tokens.
        """
        if tokens > self.context:
            raise ModelError(f"{tokens} tokens exceed the context of {self.context}", "engine", "ask for fewer")
        return self._decoder(tokens, self.rows)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """See Engine.

        Raises:
            ModelError: a prompt cannot be answered: it leaves no room for an answer, or holds what is no token.
        """
        decoder = self._decoder(self.context, min(self.rows, n * len(prompts)), patience=0.25)
        asked = {f"{i}/{k}": Request(f"{i}/{k}", prompt, sampling, seed, k) for i, prompt in enumerate(prompts) for k in range(n)}
        for request in asked.values():
            decoder.add(request)
        found: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in asked}
        while len(decoder):
            for written in decoder.step():
                tokens, logp = found[written.request]
                tokens.append(written.token)
                logp.append(written.logp)
                if written.finish:
                    prompt, k = asked[written.request].prompt, asked[written.request].sample
                    yield Rollout(prompt.id, k, self.version, prompt.tokens, tuple(tokens), tuple(logp), written.finish)

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """See Engine."""
        decoder = self._decoder(self.context, 1)
        decoder.add(Request("", prompt, sampling, seed))
        while len(decoder):
            for written in decoder.step():
                yield written.token, written.logp

    @torch.no_grad()
    def likeliest(self, prompt: Prompt, n: int) -> list[tuple[int, float]]:
        """See engines.base.Foresight."""
        self._decoder(self.context, 1).add(Request("", prompt, Sampling(max_tokens=1), seed=0))  # which refuses what cannot be read
        (batch,) = pack([Sample("", prompt.tokens, (False,) * len(prompt.tokens))], tokens=len(prompt.tokens))
        hidden = self.model.hidden(batch.to(self.reading.device))[-1:]
        logp, token = self.reading.logits(hidden)[0].log_softmax(-1).topk(min(n, self.reading.vocabulary))
        return list(zip(token.tolist(), logp.tolist(), strict=True))

    def _decoder(self, tokens: int, rows: int, patience: float = 0.0) -> Decoder:
        return Decoder(self.reading, frozenset(self.stop), self.text, Limits(tokens, rows, SHARE * _free(self.reading.device), patience))


def _free(device: torch.device) -> float:
    """Bytes of memory that nobody uses."""
    return available() if device.type == "cpu" else float(torch.cuda.mem_get_info(device)[0])
