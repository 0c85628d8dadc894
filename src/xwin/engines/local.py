"""Local: an engine in this process, for any causal model of transformers. No extra package.

Prompts are prefilled packed, once for all their samples; answers are decoded together; finished rows leave and waiting ones enter.
Token i of sample k of prompt p is drawn by inverse CDF from one counter-based uniform, a function of (seed, p, k, i) alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from xwin.data.batch import Sample, pack
from xwin.data.rollout import Prompt, Rollout
from xwin.engines._cache import Cache, DecodePlan, PrefillPlan
from xwin.engines.base import EngineKind, Sampling
from xwin.errors import ModelError
from xwin.models import causal
from xwin.models.causal import PackedModel
from xwin.models.tuning import Frozen
from xwin.models.weights import Weights
from xwin.seeds import derive, uniforms

Ends = Callable[[Sequence[int]], bool]
"""Whether the tokens written so far are a whole answer although the last of them is no stop token: a stop string, for instance."""


class Local(EngineKind):
    """Decodes in this process."""

    rows: Annotated[int, Ge(4)] = 96
    """Answers decoded together. More is faster until memory ends: a row of SmolLM2-135M holds 23 kB a token."""

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> LocalEngine:
        return LocalEngine(causal.load(model, head="language", tuning=Frozen(), dtype=dtype), tuple(stop), self.rows)


@dataclass(slots=True)
class _Answer:
    """An answer being written."""

    prompt: Prompt
    sample: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)


class LocalEngine:
    """See Engine. Holds one frozen network and a cache."""

    def __init__(self, model: PackedModel, stop: tuple[int, ...], rows: int, ends: Ends = lambda _: False) -> None:
        self.model, self.stop, self.rows, self.ends = model, stop, rows, ends
        self.version = 0
        self.context = int(getattr(model.network.config.get_text_config(), "max_position_embeddings", 1 << 30))
        self.head = model.output
        self.written, self.seconds = 0, 0.0
        """Tokens sampled, and the time that took, since the engine was built."""

    def load(self, weights: Weights) -> None:
        """See Engine.

        Raises:
            ModelError: the weights are of another network.
        """
        if weights.folder is not None:
            fresh = causal.load(weights.folder, head="language", tuning=Frozen(), dtype="float32").plain()
        else:
            fresh = dict(weights.tensors or {})
        own = self.model.network.state_dict()
        missing = sorted(own.keys() - fresh.keys())
        if missing:
            raise ModelError(f"the new weights lack {missing[0]} and {len(missing) - 1} more", "engine")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(fresh[name])
        self.version = weights.version

    def close(self) -> None:
        """See Engine. The network goes with the object."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """See Engine.

        Raises:
            ModelError: a prompt leaves no room for an answer.
        """
        self._require_room(prompts, sampling)
        rows = min(self.rows, max(4, n * len(prompts)))
        longest = max((len(p.tokens) for p in prompts), default=0) + sampling.max_tokens
        cache = Cache(max(rows, n), longest)
        waiting = deque((p, [_Answer(p, k, derive(seed, p.id, k)) for k in range(n)]) for p in prompts)
        live: list[_Answer] = []
        logits: Tensor | None = None
        start, done = time.perf_counter(), 0
        while waiting or live:
            entering = self._enter(waiting, cache.rows - len(live), urgent=not live)
            if entering:
                fresh = self._prefill(entering, cache, len(live))
                live += [a for _, answers in entering for a in answers]
                logits = fresh if logits is None else torch.cat([logits, fresh])
            assert logits is not None
            self._draw(live, logits, sampling)
            ended = [self._complete(a) or len(a.tokens) == sampling.max_tokens for a in live]
            done += len(live)
            for answer, end in zip(live, ended, strict=True):
                if end:
                    yield self._rollout(answer)
            live = self._compact(live, ended, cache)
            logits = self._decode(live, cache) if live else None
        self.written, self.seconds = self.written + done, self.seconds + time.perf_counter() - start

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """See Engine."""
        self._require_room([prompt], sampling)
        cache = Cache(4, len(prompt.tokens) + sampling.max_tokens)
        answer = _Answer(prompt, 0, derive(seed, prompt.id, 0))
        logits = self._prefill([(prompt, [answer])], cache, 0)
        while True:
            self._draw([answer], logits, sampling)
            yield answer.tokens[-1], answer.logp[-1]
            if self._complete(answer) or len(answer.tokens) == sampling.max_tokens:
                return
            logits = self._decode([answer], cache)

    def likeliest(self, prompt: Prompt, n: int) -> list[tuple[int, float]]:
        """See engines.base.Foresight."""
        self._require_room([prompt], Sampling(max_tokens=1))
        logits = self._prefill([(prompt, [_Answer(prompt, 0, 0)])], Cache(4, len(prompt.tokens) + 1), 0)
        logp, token = logits[0].log_softmax(-1).topk(min(n, logits.shape[-1]))
        return list(zip(token.tolist(), logp.tolist(), strict=True))

    def _require_room(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        for prompt in prompts:
            if len(prompt.tokens) + sampling.max_tokens > self.context:
                raise ModelError(
                    f"{len(prompt.tokens)} prompt tokens and {sampling.max_tokens} new ones exceed the context of {self.context}",
                    f"prompt {prompt.id}",
                    "shorten the prompt or lower max_tokens",
                )

    def _enter(self, waiting: deque[tuple[Prompt, list[_Answer]]], free: int, *, urgent: bool) -> list[tuple[Prompt, list[_Answer]]]:
        """The prompts that start now: when a quarter of the rows is free, as many as fit."""
        if not waiting or (not urgent and free < max(self.rows // 4, len(waiting[0][1]))):
            return []
        entering = []
        while waiting and len(waiting[0][1]) <= free:
            entering.append(waiting.popleft())
            free -= len(entering[-1][1])
        return entering

    @torch.no_grad()
    def _prefill(self, entering: Sequence[tuple[Prompt, list[_Answer]]], cache: Cache, used: int) -> Tensor:
        """Runs the prompts packed and fills the rows of their answers, from row `used` on.  [answers, V] logits of their first tokens."""
        samples = [Sample(str(i), p.tokens, (False,) * len(p.tokens)) for i, (p, _) in enumerate(entering)]
        batch = pack(samples, tokens=sum(len(s.tokens) for s in samples), share=True)[0].to(self.model.network.device)
        first = [used]
        for _, answers in entering:
            first.append(first[-1] + len(answers))
        rows = [list(range(first[int(name)], first[int(name) + 1])) if name else [] for name in batch.ids]
        hidden = self._body(batch.tokens[None], batch.position[None], PrefillPlan.of(batch, cache, rows))[0, batch.last]
        order = sorted((row, segment) for segment, mine in enumerate(rows) for row in mine)
        return self._logits(hidden)[[segment for _, segment in order]]

    @torch.no_grad()
    def _decode(self, live: Sequence[_Answer], cache: Cache) -> Tensor:
        """[live, V] logits of the next tokens. At least 4 rows are computed: fewer take another kernel, with other last bits."""
        rows = max(4, len(live))
        last = [a.tokens[-1] for a in live] + [0] * (rows - len(live))
        place = [len(a.prompt.tokens) + len(a.tokens) - 1 for a in live] + [0] * (rows - len(live))
        device = self.model.network.device
        where = torch.tensor(place, device=device)
        hidden = self._body(torch.tensor(last, device=device)[:, None], where[:, None], DecodePlan(cache, where))
        return self._logits(hidden[:, 0])[: len(live)]

    def _body(self, tokens: Tensor, position: Tensor, plan: PrefillPlan | DecodePlan) -> Tensor:
        with self.model.autocast():
            out = self.model.network.base_model(input_ids=tokens, position_ids=position, use_cache=False, plan=plan)
        return out.last_hidden_state.float()

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.head.weight, self.head.bias)

    @staticmethod
    def _draw(live: Sequence[_Answer], logits: Tensor, sampling: Sampling) -> None:
        """Adds one token to each answer.  logits: [live, V]"""
        if sampling.temperature == 0:
            token = logits.argmax(-1)
            logp = logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1)
        else:
            every = (logits / sampling.temperature).log_softmax(-1)
            seeds = np.array([a.seed for a in live], dtype=np.uint64)
            position = np.array([len(a.tokens) for a in live], dtype=np.uint64)
            uniform = torch.from_numpy(uniforms(seeds, position)).to(logits.device)
            token = _inverse_cdf(every.exp(), uniform, sampling.top_p)
            logp = every.gather(1, token[:, None]).squeeze(1)
        for answer, t, p in zip(live, token.tolist(), logp.tolist(), strict=True):
            answer.tokens.append(t)
            answer.logp.append(p)

    @staticmethod
    def _compact(live: list[_Answer], ended: Sequence[bool], cache: Cache) -> list[_Answer]:
        """The rows still being written, moved to the front: each hole is filled by the last live row."""
        keep = [i for i, end in enumerate(ended) if not end]
        holes = [i for i, end in enumerate(ended) if end and i < len(keep)]
        tail = keep[len(keep) - len(holes) :]
        if holes:
            cache.move(torch.tensor(tail), torch.tensor(holes))
        out = live[: len(keep)]
        for hole, source in zip(holes, tail, strict=True):
            out[hole] = live[source]
        return out

    def _complete(self, answer: _Answer) -> bool:
        return answer.tokens[-1] in self.stop or self.ends(answer.tokens)

    def _rollout(self, answer: _Answer) -> Rollout:
        finish = "stop" if self._complete(answer) else "length"
        return Rollout(answer.prompt.id, answer.sample, self.version, answer.prompt.tokens, tuple(answer.tokens), tuple(answer.logp), finish)


def _inverse_cdf(probability: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """The token at which the cumulative probability passes `uniform`.

    Args:
        probability: [B, V] fp32, each row sums to 1.
        uniform: [B] float64 in [0, 1).
        top_p: below 1, only the fewest most likely tokens that hold this share may be drawn.

    Returns:
        [B] int64
    """
    order: Tensor | None = None
    if top_p < 1:
        probability, order = probability.sort(dim=-1, descending=True, stable=True)
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= top_p, 0.0)
    cumulative = probability.cumsum(-1)
    target = (uniform.to(torch.float64) * cumulative[:, -1].double()).float()[:, None]
    index = torch.searchsorted(cumulative, target, right=True).clamp(max=probability.shape[-1] - 1)
    last = (probability > 0).int().cumsum(-1).argmax(-1, keepdim=True)  # rounding must not pick a token of probability 0 behind the last
    index = torch.minimum(index, last)
    return (index if order is None else order.gather(1, index)).squeeze(1)
