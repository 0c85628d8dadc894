"""Continuous batching by vLLM: requests are handed to its engine as they come, and its steps are read back token by token."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xwin.data.rollout import Finish
from xwin.engines.base import Request, Token
from xwin.errors import Failure, ModelError
from xwin.seeds import derive

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}

COLDEST = 0.01
"""Temperature; what is asked for below it, vLLM draws at it."""


@dataclass
class VllmBatcher:
    """See Batcher. Several may share an engine: each has a name, and what vLLM writes for another one is left for it."""

    llm: Any
    name: str
    stop: tuple[int, ...]
    context: int
    """Tokens of the longest prompt and answer, together."""
    vocabulary: int
    unread: list[Any]
    """What vLLM wrote for others of the engine's batchers; shared by them."""
    live: set[str] = field(default_factory=set)

    def add(self, request: Request, *, top: int = 0) -> None:
        """See Batcher.

        Args:
            request: what is asked.
            top: how many likeliest tokens to tell at each place.
        """
        self.require_able(request)
        vllm: Any = importlib.import_module("vllm")
        sampling, prompt = request.sampling, request.prompt
        settings = vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=derive(request.seed, prompt.id, request.sample),
            stop_token_ids=list(self.stop),
            ignore_eos=True,  # the stop tokens are ours to say
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            logprobs=top,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
        self.llm.add_request(self._full(request.id), {"prompt_token_ids": list(prompt.tokens)}, settings)
        self.live.add(request.id)

    def require_able(self, request: Request) -> None:
        """Sees to it that a request can be answered.

        Raises:
            ModelError: it cannot; says why, with the numbers.
        """
        prompt, sampling, where = request.prompt, request.sampling, f"prompt {request.prompt.id}"
        if len(prompt.tokens) + sampling.max_tokens > self.context:
            what = f"{len(prompt.tokens)} prompt tokens and {sampling.max_tokens} new ones exceed the context of {self.context}"
            raise ModelError(what, where, "shorten the prompt or lower max_tokens")
        strange = next((token for token in prompt.tokens if not 0 <= token < self.vocabulary), None)
        if strange is not None or not prompt.tokens:
            what = "there is no token in it" if strange is None else f"the vocabulary of {self.vocabulary} tokens has none with the id {strange}"
            raise ModelError(what, where, "render the prompt with the tokenizer of the model")
        if 0 < sampling.temperature < COLDEST:
            what = f"vLLM draws at temperatures from {COLDEST} on, and at 0, but not at {sampling.temperature}"
            raise ModelError(what, where, "set temperature: 0, or a higher one")

    def drop(self, request: str) -> None:
        """See Batcher."""
        if request in self.live:
            self.live.remove(request)
            self.llm.abort_request([self._full(request)])

    def step(self) -> list[Token]:
        """See Batcher. A long prompt may take vLLM more than one step: then there is no token of it yet."""
        return [token for said in self.outputs() for token in self._tokens(said)]

    def outputs(self) -> list[Any]:
        """What vLLM wrote for this batcher in its next step, in its own form."""
        if not self.live:
            return []
        said, own = [*self.unread, *self.llm.step()], self._full("")
        self.unread[:] = [one for one in said if not one.request_id.startswith(own)]
        mine = [one for one in said if one.request_id.startswith(own) and self._short(one) in self.live]
        self.live -= {self._short(one) for one in mine if one.finished}
        return mine

    def __len__(self) -> int:
        return len(self.live)

    def _tokens(self, said: Any) -> Iterator[Token]:
        """The tokens of one request."""
        written, name = said.outputs[0], self._short(said)
        if said.finished and not written.token_ids:
            raise Failure(f"vLLM gave a request up: {written.finish_reason}", f"request {name}", "run again, with a smaller engine.rows")
        last = len(written.token_ids) - 1
        for place, (token, known) in enumerate(zip(written.token_ids, written.logprobs, strict=True)):
            finish = FINISHES.get(written.finish_reason, "error") if said.finished and place == last else None
            yield Token(name, token, known[token].logprob, finish)

    def _full(self, request: str) -> str:
        return f"{self.name}/{request}"

    def _short(self, said: Any) -> str:
        return said.request_id.removeprefix(self._full(""))
