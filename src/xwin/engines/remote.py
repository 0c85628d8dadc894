"""Remote: a model behind any OpenAI-compatible endpoint. Text in, text out: it answers and judges; it cannot be the policy in training.

Transport, retries with backoff (`Retry-After` is obeyed) and timeouts are the `openai` client's. Keys are read from the environment when a
client is made; they are in no setting, file, message or log.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import field_validator

from xwin.data.conversation import Conversation
from xwin.data.rollout import Finish
from xwin.engines._replies import KeptChat, ReplyStore
from xwin.engines.base import Engine, EngineKind, Reply, Sampling
from xwin.errors import EndpointError, MissingExtra, UserError, XwinError
from xwin.seeds import derive

if TYPE_CHECKING:
    import openai

GARBLED = 3
"""How often an answer that cannot be read is asked for again."""
REFUSED = (400, 413, 422)
"""HTTP statuses that are about one question: too long, filtered, malformed."""
AGAIN = "run the same command again: what was answered is kept"


class Remote(EngineKind):
    """Asks an endpoint; for judges (`judge`), not for rollouts: an endpoint tells no token ids."""

    model: str
    """The name that the endpoint gives it. Names like gpt-4 move: take a dated one."""

    endpoint: str = "https://api.openai.com/v1"
    """Its address, without /chat/completions."""

    key: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key, never the key itself; null = the endpoint wants none."""

    timeout: Annotated[float, Gt(0)] = 120.0
    """Longest silence of the endpoint, seconds."""

    retries: Annotated[int, Ge(0)] = 6
    """How often a question is repeated after an error of the endpoint or the connection, with growing pauses."""

    at_once: Annotated[int, Ge(1)] = 8
    """Questions under way at the same time."""

    per_minute: Annotated[float, Gt(0)] | None = None
    """At most so many questions a minute; null = as fast as answers come."""

    usd_in: Annotated[float, Ge(0)] = 0.0
    """Price of a million tokens that are read, US dollars."""

    usd_out: Annotated[float, Ge(0)] = 0.0
    """Price of a million tokens that are written, US dollars."""

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest answer."""

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str) -> str:
        if not re.fullmatch(r"https?://[^\s@?#]+", endpoint):
            raise ValueError("an endpoint is http(s)://host[:port]/path, without a key or password in it")
        return endpoint.rstrip("/")

    @field_validator("key")
    @classmethod
    def _is_variable(cls, key: str | None) -> str | None:
        if key is not None and not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
            raise ValueError("key is the name of an environment variable that holds the key, never the key itself")
        return key

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> Engine:
        """Raises: UserError, always."""
        raise UserError("an endpoint tells no token ids, so nothing can be sampled from it for training", "engine: remote", "take engine: local")

    def chat(self, replies: Path) -> KeptChat:
        """See EngineKind.

        Raises:
            UserError: the environment holds no key.
            MissingExtra: the `openai` package is not installed.
        """
        chat = RemoteChat(self, _secret(self.key))
        return KeptChat(chat, ReplyStore(replies), f"{self.endpoint} {self.model}", block=1, at_once=self.at_once)


@dataclass
class Pace:
    """Lets callers pass at most so often, evenly spread; for many threads."""

    per_minute: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    due: float = -math.inf
    """When the next may pass."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Returns when it is this caller's turn."""
        with self.lock:
            begin = max(self.due, self.now())
            self.due = begin + 60 / self.per_minute
        if begin > self.now():
            self.sleep(begin - self.now())


class RemoteChat:
    """See Chat. Asks one question at a time; safe to use from several threads."""

    def __init__(self, spec: Remote, secret: str) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtra("openai", "remote") from None
        self.spec, self._secret = spec, secret
        self._pace = Pace(spec.per_minute) if spec.per_minute else None
        self._client: openai.OpenAI = openai.OpenAI(api_key=secret or "none", base_url=spec.endpoint, timeout=spec.timeout, max_retries=spec.retries)
        weakref.finalize(self, self._client.close)  # its connections end with this object, not whenever the collector comes by

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int, top: int = 0) -> Iterator[Reply]:
        """See Chat. A question that the endpoint refuses (too long, filtered) has a reply with finish "error".

        Raises:
            UserError: the sampling asks for what no endpoint is sure to do.
            EndpointError: no answer to be had, of this endpoint, key or model, after all retries.
        """
        for conversation in conversations:
            yield self._reply(conversation, self._body(conversation, sampling, seed, top))

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        """See Chat.

        Raises:
            UserError: see `reply`.
            EndpointError: no answer, or the stream broke off before its end.
        """
        finish = None
        with self._problems(), self._client.chat.completions.create(**self._body(conversation, sampling, seed, 0), stream=True) as chunks:
            for chunk in chunks:
                for choice in chunk.choices or ():
                    finish = choice.finish_reason or finish
                    if choice.delta and choice.delta.content:
                        yield choice.delta.content
        if finish is None:
            raise self._error("the stream broke off before the answer was whole", AGAIN)

    def _reply(self, conversation: Conversation, body: Mapping[str, Any]) -> Reply:
        began, unread = time.monotonic(), ""
        for _ in range(1 + GARBLED):
            if self._pace:
                self._pace.wait()
            try:
                with self._problems():
                    unread = self._client.chat.completions.with_raw_response.create(**body).http_response.text
            except _Refused as refusal:
                return Reply("", "error", 0, note=refusal.what, seconds=time.monotonic() - began)
            with suppress(ValueError, LookupError, TypeError, AttributeError):  # whatever JSON of another shape leads to
                return self._read(json.loads(unread), time.monotonic() - began)
        fix = "is this the address of an OpenAI-compatible endpoint? It usually ends in /v1"
        raise self._error(f"what it answers is no chat completion: {unread[:120]!r}", fix)

    def _body(self, conversation: Conversation, sampling: Sampling, seed: int, top: int) -> dict[str, Any]:
        if sampling.top_k or sampling.min_p:
            raise UserError("OpenAI's interface knows neither top_k nor min_p", self.spec.endpoint, "use top_p")
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": m.role, "content": m.text} for m in conversation.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.spec.limit: sampling.max_tokens,
            "seed": derive(seed, conversation.id) >> 32,  # 31 bits: what every endpoint takes
        }
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        return body | ({"logprobs": True, "top_logprobs": top} if top else {})

    def _read(self, answer: Any, seconds: float) -> Reply:
        """Raises: ValueError, LookupError, TypeError or AttributeError, where it is no chat completion."""
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("the content is not text")
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        usd = (read * self.spec.usd_in + written * self.spec.usd_out) / 1e6
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            return Reply("", "error", written, read, usd=usd, seconds=seconds, note="the endpoint's filter held the answer back")
        finish: Finish = "length" if reason == "length" else "stop"
        return Reply(text, finish, written, read, _first_token(choice), usd, seconds)

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """What the client raises, as an error of ours: _Refused for one question, EndpointError for all of them."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._status(error.status_code, error.message) from None
        except openai.APITimeoutError:
            raise self._error(f"was silent for {self.spec.timeout:g} s, {1 + self.spec.retries} times", AGAIN) from None
        except openai.APIConnectionError as error:
            raise self._error(f"cannot be reached, or breaks off: {error.__cause__ or error.message}", AGAIN) from None
        except (openai.APIError, ValueError) as error:  # inside a stream: an error instead of a piece, or a piece that is not JSON
            raise self._error(f"breaks off: {error}", AGAIN) from None

    def _status(self, status: int, message: str) -> XwinError:
        """The error that an HTTP status means."""
        message = message.removeprefix(f"Error code: {status} - ")
        if status in REFUSED:
            return _Refused(self._clean(message), self.spec.endpoint)
        key = f"is the right key in {self.spec.key}?" if self.spec.key else "name the variable that holds a key"
        fixes = {
            401: key,
            403: key,
            404: f"check the model '{self.spec.model}' and the address",
            429: f"{AGAIN}; fewer at_once, or per_minute, are gentler",
        }
        return self._error(f"answers {status}: {message}", fixes.get(status, AGAIN))

    def _error(self, what: str, fix: str) -> EndpointError:
        return EndpointError(self._clean(what), self.spec.endpoint, fix)

    def _clean(self, text: str) -> str:
        """Endpoints like to quote the key they got."""
        return text.replace(self._secret, "(key)") if self._secret else text


class _Refused(UserError):
    """The endpoint will not answer this one question."""


def _secret(variable: str | None) -> str:
    """The key in the environment; empty where none is wanted."""
    secret = os.environ.get(variable, "").strip() if variable else ""
    if variable and not secret:
        raise UserError(f"the environment variable {variable} holds no key", fix=f"export {variable}=..., or key: null for an endpoint without keys")
    return secret


def _first_token(choice: Mapping[str, Any]) -> dict[str, float]:
    """Token -> log-probability, of the first token; empty where the endpoint does not tell."""
    content = (choice.get("logprobs") or {}).get("content") or []
    told = content[0].get("top_logprobs") or [] if content else []
    return {str(t["token"]): min(float(t["logprob"]), 0.0) for t in told if math.isfinite(float(t["logprob"]))}
