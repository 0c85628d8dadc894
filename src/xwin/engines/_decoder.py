"""The one decoding loop: requests wait, enter, are written a token at a time, and leave. See engines.base.Batcher.

A step decodes the live rows, prefills the requests that enter, packed and each prompt once for all its answers, and draws one token for each.
Token i of an answer is drawn from one counter-based uniform, a function of (seed, prompt id, sample, i) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from xwin.data.batch import Sample, pack
from xwin.data.rollout import Finish
from xwin.engines._cache import PAGE, Cache, DecodePlan, PrefillPlan, in_pages
from xwin.engines._drawing import draw
from xwin.engines._reading import Reading
from xwin.engines.base import Request, Token
from xwin.errors import ModelError, OutOfMemory
from xwin.run.memory import allocation_errors
from xwin.seeds import derive, uniforms

PREFILL = 8192
"""Tokens of prompts that enter in one step, at most, beside the first prompt: what is live waits for them."""


Text: TypeAlias = Callable[[Sequence[int]], str]
"""Writes tokens as text, special ones spelled out."""


@dataclass(slots=True)
class _Answer:
    """An answer being written."""

    request: Request
    seed: int
    tail: int
    """Tokens from the end that are read to find a stop text."""
    tokens: list[int] = field(default_factory=list)
    peak: float = 0.0
    """The largest logit of the last token."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.request.prompt.tokens) + self.request.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder may take."""

    tokens: int
    """The longest prompt and answer, together."""
    rows: int
    """Answers decoded together."""
    cache: float
    """Bytes of the cache."""
    patience: float = 0.0
    """Share of the rows that must be free before waiting requests enter; those that wait enter together, which takes less time altogether."""


class Decoder:
    """See engines.base.Batcher."""

    def __init__(self, reading: Reading, stop: frozenset[int], text: Text | None, limits: Limits) -> None:
        self.reading, self.stop, self.text, self.limits = reading, stop, text, limits
        self.rows = limits.rows
        """Answers decoded together now: fewer after memory ran out, until nothing is live any more."""
        self.cache = Cache(0, 0)
        self.place_bytes = reading.place_bytes
        self.names: set[str] = set()
        self.waiting: deque[_Answer] = deque()
        self.live: list[_Answer] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.live)

    def add(self, request: Request) -> None:
        """See Batcher."""
        answer = _Answer(request, derive(request.seed, request.prompt.id, request.sample), _tail(request.sampling.stop))
        mistake = next(self._mistakes(answer), None)
        if mistake is not None:
            raise ModelError(mistake[0], f"prompt {request.prompt.id}", mistake[1])
        self.names.add(request.id)
        self.waiting.append(answer)

    def _mistakes(self, answer: _Answer) -> Iterator[tuple[str, str]]:
        """Why a request can never be answered, and what to do."""
        tokens, sampling, known = answer.request.prompt.tokens, answer.request.sampling, self.reading.vocabulary
        if answer.request.id in self.names:
            yield f"a request '{answer.request.id}' is in line already", "give each request an id of its own"
        if sampling.stop and self.text is None:
            yield "stop texts cannot be found: the engine was given no tokenizer", "leave sampling.stop empty"
        if not tokens:
            yield "it has no token: there is nothing to go on with", "give it at least one"
        for token in (t for t in tokens if not 0 <= t < known):
            yield f"the token {token} is not one of the {known} of the vocabulary", "use the model's own tokenizer"
        if answer.longest > self.limits.tokens:
            what = f"{len(tokens)} prompt tokens and {sampling.max_tokens} new ones exceed the context of {self.limits.tokens}"
            yield what, "shorten the prompt or lower max_tokens"
        if not self._fits(1, answer.longest):
            needed, there = self._needed(1, answer.longest) / 2**20, self.limits.cache / 2**20
            yield f"the cache would take {needed:.0f} MiB, and {there:.0f} are free", "shorten the prompt or lower max_tokens"

    @torch.inference_mode()
    def drop(self, request: str) -> None:
        """See Batcher."""
        if request in self.names:
            self.names.remove(request)
            self.waiting = deque(a for a in self.waiting if a.request.id != request)
            self._leave([a.request.id == request for a in self.live])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """See Batcher.

        Raises:
            OutOfMemory: there is no memory for the one request that was to enter; it is dropped, and the next step goes on. While others are
                live, requests for which there is no memory wait.
        """
        live = list(self.live)
        written = self._draw(live, *self._decode(live)) if live else []
        entering = self._entering()
        try:
            written += self._draw(entering, *self._prefill(entering)) if entering else []
            self.live += entering
        except OutOfMemory:
            if not live:
                self.cache = Cache(0, 0)  # as large as there is no memory for, and nobody's
            fewer = len(live) + len(entering) // 2
            if not fewer:
                self.names.remove(entering[0].request.id)
                raise
            self.rows = fewer
            self.waiting.extendleft(reversed(entering))
        for row, token in enumerate(written):
            if token.finish == "error":
                self.cache.clear(row)
        self._leave([token.finish is not None for token in written])
        return written

    def _needed(self, rows: int, longest: int) -> int:
        """Bytes of a cache."""
        return max(rows, self.reading.fewest) * in_pages(longest) * PAGE * self.place_bytes

    def _fits(self, rows: int, longest: int) -> bool:
        return self._needed(rows, longest) <= self.limits.cache

    def _entering(self) -> list[_Answer]:
        """The requests that start now, taken out of the line: as many as there are rows and memory for."""
        if not self.waiting or (self.live and self.rows - len(self.live) < self.limits.patience * self.rows):
            return []
        entering: list[_Answer] = []
        longest, prompts = max((a.longest for a in self.live), default=0), 0
        while self.waiting and len(self.live) + len(entering) < self.rows:
            first = self.waiting[0]
            new = 0 if entering and first.request.prompt.tokens == entering[-1].request.prompt.tokens else len(first.request.prompt.tokens)
            longest = max(longest, first.longest)
            if not self._fits(len(self.live) + len(entering) + 1, longest) or (entering and prompts + new > PREFILL):
                break
            entering.append(self.waiting.popleft())
            prompts += new
        return entering

    def _prefill(self, entering: Sequence[_Answer]) -> tuple[Tensor, list[float]]:
        """Logits of their first tokens, as `_decode` gives them; fills the rows behind those that are live."""
        same: dict[tuple[int, ...], list[int]] = {}
        for i, answer in enumerate(entering):
            same.setdefault(answer.request.prompt.tokens, []).append(i)
        samples = [Sample(str(i), tokens, (False,) * len(tokens)) for i, tokens in enumerate(same)]
        batch = pack(samples, tokens=sum(map(len, same)), share=True)[0].to(self.reading.device)
        answers = list(same.values())
        mine = [answers[int(name)] if name else [] for name in batch.ids]
        used = len(self.live)
        with allocation_errors("the engine's cache", "lower engine.rows or sampling.max_tokens"):
            self._reserve(entering)
            plan = PrefillPlan.of(batch, self.cache, [[used + i for i in each] for each in mine])
            hidden = self.reading.hidden(batch.tokens[None], batch.position[None], plan)[0, batch.last]
        order = sorted((i, segment) for segment, each in enumerate(mine) for i in each)
        return self.reading.logits(hidden)[[segment for _, segment in order]], [0.0] * len(entering)

    def _reserve(self, entering: Sequence[_Answer]) -> None:
        """Twice the rows at once where that fits, so that requests that come one by one do not copy the cache each time."""
        rows = max(len(self.live) + len(entering), self.reading.fewest)
        longest = max(a.longest for a in (*self.live, *entering))
        more = min(2 * self.cache.rows, max(self.rows, self.reading.fewest))
        if self.cache.rows < rows < more and self._fits(more, longest):
            rows = more
        room = (max(rows, self.cache.rows), max(longest, self.cache.length))
        self.cache.reserve(*(room if self._fits(*room) else (rows, longest)), live=len(self.live))

    def _decode(self, live: Sequence[_Answer]) -> tuple[Tensor, list[float]]:
        """[live, V] logits of the next tokens less a number of each row, and these numbers: see Reading.shifted."""
        idle = self.reading.fewest - len(live)
        last = [a.tokens[-1] for a in live] + [0] * idle
        place = [len(a.request.prompt.tokens) + len(a.tokens) - 1 for a in live] + [0] * idle
        plan = DecodePlan.of(self.cache, place, self.reading.device)
        hidden = self.reading.hidden(torch.tensor(last, device=self.reading.device)[:, None], plan.place[:, None], plan)
        less = [a.peak if self.reading.shifts else 0.0 for a in live]
        return self.reading.shifted(hidden[:, 0], less + [0.0] * idle)[: len(live)], less

    def _draw(self, answers: Sequence[_Answer], logits: Tensor, less: Sequence[float]) -> list[Token]:
        """Adds one token to each answer.  logits: [answers, V], each row less a number."""
        seeds = np.array([a.seed for a in answers], dtype=np.uint64)
        position = np.array([len(a.tokens) for a in answers], dtype=np.uint64)
        drawn = draw(logits, [a.request.sampling for a in answers], torch.from_numpy(uniforms(seeds, position)).to(logits.device))
        written = []
        for answer, token, logp, peak, taken in zip(answers, drawn.token, drawn.logp, drawn.peak, less, strict=True):
            answer.tokens.append(token)
            answer.peak = peak + taken
            written.append(Token(answer.request.id, token, logp, self._finish(answer, logp)))
        return written

    def _finish(self, answer: _Answer, logp: float) -> Finish | None:
        if not np.isfinite(logp):
            return "error"
        sampling = answer.request.sampling
        if answer.tokens[-1] in self.stop:
            return "stop"
        if sampling.stop and self.text is not None:
            text = self.text(answer.tokens[-answer.tail :])
            if any(stop in text for stop in sampling.stop):
                return "stop"
        return "length" if len(answer.tokens) == sampling.max_tokens else None

    def _leave(self, ended: Iterable[bool]) -> None:
        """Frees rows; each hole is filled by the last live row."""
        holes = [i for i, end in enumerate(ended) if end]
        for hole in reversed(holes):
            self.names.discard(self.live[hole].request.id)
            last = self.live.pop()
            if hole < len(self.live):
                self.cache.move(len(self.live), hole)
                self.live[hole] = last
        if holes and not self.live:
            self.rows = self.limits.rows


def _tail(stop: Sequence[str]) -> int:
    """Tokens that hold the longest stop text: each has at least one byte; some more, since those that only mark something have none."""
    return max((len(text.encode()) for text in stop), default=0) + 4
