"""Who writes text. Engine: ids in, ids and log-probabilities out, for training. Chat: text in, text out, for people, judges and suites."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le, Len, Lt

from xwin.data.conversation import Conversation
from xwin.data.rollout import Finish, Prompt, Rollout
from xwin.data.template import Template
from xwin.errors import Failure, UserError
from xwin.models.weights import Weights
from xwin.spec import Kind, Spec

NOT_FINITE = "the model's probabilities are not finite"
"""What is said of an answer with the finish "error"."""


class Sampling(Spec):
    """How an answer is drawn. One object for the engine that samples and the learner that judges the sample."""

    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits. 0 = greedy."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Nucleus: only the most likely tokens that hold this share of the probability may be drawn. Below 1 the ratio of PPO is biased, so
    the rl stage refuses it."""

    top_k: Annotated[int, Ge(0)] = 0
    """Only the k most likely tokens may be drawn; 0 = all. The rl stage refuses it as it refuses top_p."""

    min_p: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Only tokens at least this share as likely as the likeliest may be drawn (arXiv:2407.01082). The rl stage refuses it as it refuses top_p."""

    max_tokens: Annotated[int, Ge(1)] = 256
    """Longest answer, tokens, the stop token included."""

    stop: tuple[Annotated[str, Len(1)], ...] = ()
    """Texts that end an answer. The tokens that hold them stay in the rollout, so ids and log-probs stay aligned; what reads text cuts it there."""

    @property
    def filters(self) -> bool:
        """Whether some tokens may not be drawn, however the model likes them."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    def cut(self, text: str) -> str:
        """The text up to the first of the stop texts in it."""
        ends = [place for place in map(text.find, self.stop) if place >= 0]
        return text[: min(ends)] if ends else text

    def shown(self, text: str) -> str:
        """The part of an unfinished text that no later token can take back: without an end that may be the beginning of a stop text."""
        whole = self.cut(text)
        if len(whole) < len(text):
            return whole
        held = max((k for stop in self.stop for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
        return text[: len(text) - held]


class Engine(Protocol):
    """Writes completions. The tokens of sample k of a prompt depend on (seed, prompt id, k) and not on its neighbours."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """n completions of each prompt, yielded as they finish."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """(token id, log-probability in nats) one by one, the stop token included."""
        ...

    def load(self, weights: Weights) -> None:
        """The next generate uses these weights; Rollout.version tells."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


@runtime_checkable
class Foresight(Protocol):
    """An Engine that can say which first tokens it might have written."""

    def likeliest(self, prompt: Prompt, n: int) -> Sequence[tuple[int, float]]:
        """The n likeliest first tokens of an answer at temperature 1: (token id, log-probability in nats), likeliest first."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for.  Example: Request("chat-7", Prompt("chat-7", (1, 5, 9)), Sampling(), seed=0)"""

    id: str
    """Among the requests of a batcher, its own."""
    prompt: Prompt
    sampling: Sampling
    seed: int
    sample: int = 0
    """The tokens depend on (seed, prompt id, sample), as those of Engine.generate."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token written for a request."""

    request: str
    token: int
    logp: float
    """Nats, of the unfiltered, temperature-scaled distribution."""
    finish: Finish | None
    """Set with the last one."""


class Batcher(Protocol):
    """Requests that come and go while others are being written: continuous batching. Owned by one thread."""

    def add(self, request: Request) -> None:
        """Puts a request in line.

        Raises:
            ModelError: it can never be answered: says why, with the numbers. The other requests are not touched.
        """
        ...

    def drop(self, request: str) -> None:
        """Forgets a request whose client went away: its row is free at once. Unknown ids are fine: it may just have been finished."""
        ...

    def step(self) -> list[Token]:
        """Lets waiting requests enter and writes one token for each live one."""
        ...

    def __len__(self) -> int:
        """Requests live or waiting."""
        ...


@runtime_checkable
class Continuous(Protocol):
    """An Engine that can serve requests as they come."""

    def batcher(self, tokens: int) -> Batcher:
        """A batcher over the engine's weights.

        Args:
            tokens: the longest prompt and answer, together.
        """
        ...


class EngineKind(Kind):
    """Settings of an engine. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.engines"

    def chat(self, replies: Path) -> Chat:
        """A Chat with a model that is not ours to load.

        Args:
            replies: file in which answers are kept, so that nothing is asked twice.

        Raises:
            UserError: this engine runs a model of ours, and none was named.
        """
        raise UserError(
            f"the engine '{self.kind}' runs a model of ours, and none is named", fix="name it, or take engine: {kind: remote, model: ...}"
        )

    def require(self) -> None:
        """Sees to it, before any stage runs, that this machine can do what the settings ask for.

        Raises:
            UserError: it cannot: an optional package or a device is missing.
        """

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> Engine:
        """An engine over a Hugging Face folder.

        Args:
            model: the folder.
            stop: token ids that end an answer.
            dtype: "float32" or "bfloat16".
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Reply:
    """What a Chat answers.  Example: Reply("4", "stop", tokens=2)"""

    text: str
    finish: Finish
    """ "error": there is no answer, and `note` says why."""
    tokens: int
    """Length of the answer, tokens, the stop token included."""
    prompt_tokens: int = 0
    """Length of what was read, tokens; 0 where nobody counted."""
    top_logprobs: Mapping[str, float] = field(default_factory=dict, hash=False)
    """First token of the answer, as it might have been -> log-probability, nats. Empty where it was not asked for, or is not known."""
    usd: float = 0.0
    """Price, US dollars."""
    seconds: float = 0.0
    """Time from question to answer; of answers that were written together, an equal share."""
    note: str = ""
    kept: bool = False
    """Whether it was answered before and kept: neither price nor time is of today."""


class Chat(Protocol):
    """Text in, text out: what judges, suites, servers and people take."""

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int, top: int = 0) -> Iterator[Reply]:
        """One answer per conversation, in order.

        Args:
            conversations: with unique ids.
            sampling: how answers are drawn.
            seed: of the draws.
            top: how many likely first tokens to tell in Reply.top_logprobs.
        """
        ...

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        """The answer piece by piece, whole characters only."""
        ...


@dataclass(frozen=True)
class EngineChat:
    """An Engine lifted to a Chat by a Template."""

    engine: Engine
    template: Template

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int, top: int = 0) -> Iterator[Reply]:
        """See Chat.

        Raises:
            UserError: first tokens are asked for, and the engine does not know them.
        """
        prompts = [Prompt(c.id, self.template.prompt(c.messages)) for c in conversations]
        began = time.perf_counter()
        first = [self._first(prompt, top) for prompt in prompts]
        found = {r.prompt_id: r for r in self.engine.generate(prompts, sampling, seed=seed)}
        share = (time.perf_counter() - began) / max(len(prompts), 1)  # they were written together
        for prompt, likely in zip(prompts, first, strict=True):
            rollout = found[prompt.id]
            failed = rollout.finish == "error"
            text = "" if failed else sampling.cut(self.template.parse(rollout.completion).text)
            note = NOT_FINITE if failed else ""
            yield Reply(text, rollout.finish, len(rollout.completion), len(prompt.tokens), likely, seconds=share, note=note)

    def _first(self, prompt: Prompt, top: int) -> dict[str, float]:
        """Tokens that read the same share a place: the likelier one's."""
        if not top:
            return {}
        if not isinstance(self.engine, Foresight):
            raise UserError("this engine cannot say which other first tokens were likely", fix="take a judge that answers in words (ranking)")
        found: dict[str, float] = {}
        for token, logp in self.engine.likeliest(prompt, top):
            found.setdefault(self.template.parse([token]).text.strip(), logp)
        return found

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        """See Chat. What may be half a character or half a stop text is held back until it is known.

        Raises:
            Failure: the model computed what is no number.
        """
        prompt = Prompt(conversation.id, self.template.prompt(conversation.messages))
        tokens: list[int] = []
        text = shown = ""
        for token, logp in self.engine.stream(prompt, sampling, seed=seed):
            if not math.isfinite(logp):
                raise Failure(NOT_FINITE)
            tokens.append(token)
            text = self.template.parse(tokens).text
            sure = sampling.shown(text)
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(sure) > len(shown):
                yield sure[len(shown) :]
                shown = sure
        rest = sampling.cut(text)
        if len(rest) > len(shown):  # the length limit cut a character in two, or what might have become a stop text did not
            yield rest[len(shown) :]
