"""What clients may send: OpenAI's requests, as far as they are understood. What is not is refused by name, never passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, False, True),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}
"""Parameters that are not supported -> the values with which they ask for nothing."""


def _written(text: str) -> str:
    """JSON can spell halves of characters (a lone \\ud800), which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("half_character", "holds half a character, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_written)]
Whole = Annotated[int, Ge(-(2**63)), Lt(2**63)]
Ids = Annotated[list[Annotated[int, Ge(0), Lt(2**31)]], Len(1)]


class Sent(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class TextPart(Sent):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Text


class ChatMessage(Sent):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is `system`."""
    content: Text | list[TextPart]
    name: str | None = None
    """Of the speaker; not shown to the model."""

    @property
    def text(self) -> str:
        """The whole content."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Sent):
    """Of a stream."""

    include_usage: bool = False
    """Whether the last chunk counts tokens."""


class Asked(Sent):
    """What both kinds of request share. null = the default."""

    model: str
    """One of /v1/models."""
    n: Annotated[int, Ge(1), Le(128)] | None = None
    """Answers; default 1."""
    temperature: Annotated[float, Ge(0), Le(2)] | None = None
    """0 = always the most likely token; default 1."""
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    """Only the most likely tokens that hold this share; default 1."""
    top_k: Annotated[int, Ge(0), Lt(2**31)] | None = None
    """Only this many of the most likely tokens; default 0, all. Not of OpenAI's."""
    min_p: Annotated[float, Ge(0), Lt(1)] | None = None
    """Only tokens at least this share as likely as the likeliest; default 0. Not of OpenAI's."""
    max_tokens: Annotated[int, Ge(1), Lt(2**31)] | None = None
    """Longest answer, tokens; default: what fits."""
    seed: Whole | None = None
    """The same seed, prompt and settings give the same answer; default: another one each time."""
    stop: Annotated[Text, Len(1)] | Annotated[list[Annotated[Text, Len(1)]], Len(0, 16)] | None = None
    """Texts that end an answer; they are left out of it."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """A label of the client's; nothing is made of it."""
    metadata: dict[str, str] | None = None
    """Labels of the client's; nothing is made of them."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        for name in NEUTRAL.keys() & sent.keys() - cls.model_fields.keys():
            if sent[name] not in NEUTRAL[name]:
                raise PydanticCustomError("unsupported", "{name} is not supported by this server", {"name": name})
        return {name: value for name, value in sent.items() if name not in NEUTRAL or name in cls.model_fields}

    @property
    def longest(self) -> int | None:
        """Of an answer, tokens."""
        return self.max_tokens

    @property
    def ends(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of the answer's tokens are asked for."""
        return False

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Asked):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Len(1)]
    max_completion_tokens: Annotated[int, Ge(1), Lt(2**31)] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """Whether to tell the log-probability of each token of the answer."""

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("two_limits", "max_tokens and max_completion_tokens differ: give one of them")
        return self

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)


class CompletionRequest(Asked):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[Text], Len(1)] | Ids | Annotated[list[Ids], Len(1)]
    """One or more prompts, each a text, written for the model as it is, or token ids."""
    logprobs: Literal[0] | None = None
    """0 = the log-probability of each token of the answer; those of other tokens are not known here."""

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]
