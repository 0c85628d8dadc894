"""What the server says: OpenAI's answers, chunks and errors, as JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from xwin.data.rollout import Finish
from xwin.data.template import Template
from xwin.serving._text import Growing, Piece

Json = Any
LEAST = -9999.0
"""What OpenAI writes for a log-probability that is none."""


class Refused(Exception):
    """An HTTP status with an error body as OpenAI writes it."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Json]:
        """{"error": {"message", "type", "param", "code"}}; text that no UTF-8 can hold is spelled out."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")  # noqa: PLR2004 - of HTTP
        texts = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {key: text and text.encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every answer and chunk of one request repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    kind: Literal["chat", "text"]
    logprobs: bool
    words: Template

    def whole(self, answers: Sequence[Growing], prompt_tokens: int) -> dict[str, Json]:
        """The answer to a request that does not stream."""
        choices = []
        for index, answer in enumerate(answers):
            piece = answer.take()
            content = {"message": {"role": "assistant", "content": piece.text}} if self.kind == "chat" else {"text": piece.text}
            choices.append({"index": index, **content, "logprobs": self._logprobs(piece), "finish_reason": answer.finish})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return self._body(name, choices) | {"usage": usage(answers, prompt_tokens)}

    def chunk(self, index: int, piece: Piece, finish: Finish | None, *, first: bool = False) -> dict[str, Json]:
        """A bit of choice `index`; the first one of a chat says who speaks."""
        if self.kind == "chat":
            said: dict[str, Json] = {"role": "assistant"} if first else {}
            said |= {"content": piece.text} if piece.text or first else {}
            content: dict[str, Json] = {"delta": said}
        else:
            content = {"text": piece.text}
        choice = {"index": index, **content, "logprobs": self._logprobs(piece), "finish_reason": finish}
        return self._body("chat.completion.chunk" if self.kind == "chat" else "text_completion", [choice])

    def counted(self, answers: Sequence[Growing], prompt_tokens: int) -> dict[str, Json]:
        """The last chunk of a stream that was asked to count."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return self._body(name, []) | {"usage": usage(answers, prompt_tokens)}

    def _body(self, name: str, choices: list[dict[str, Json]]) -> dict[str, Json]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, piece: Piece) -> dict[str, Json] | None:
        if not self.logprobs:
            return None
        texts = [self.words.decode([t.token]) for t in piece.tokens]
        logps = [max(t.logp, LEAST) for t in piece.tokens]
        if self.kind == "chat":
            rows = [{"token": text, "logprob": p, "bytes": _bytes(text), "top_logprobs": []} for text, p in zip(texts, logps, strict=True)]
            return {"content": rows, "refusal": None}
        offsets = list(accumulate(map(len, texts), initial=piece.start))[:-1]
        return {"tokens": texts, "token_logprobs": logps, "top_logprobs": None, "text_offset": offsets}


def usage(answers: Sequence[Growing], prompt_tokens: int) -> dict[str, int]:
    """Tokens that were read and written, the end tokens included."""
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}


def event(value: Json) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n".encode()


def _bytes(text: str) -> list[int] | None:
    """None for a token that holds only a part of a character."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
