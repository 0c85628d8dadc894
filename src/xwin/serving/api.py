"""An OpenAI-compatible HTTP server over models of ours: /v1/models, /v1/chat/completions, /v1/completions, /healthz, /metrics."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from xwin.data.conversation import conversation_from_json
from xwin.engines.base import Sampling
from xwin.errors import DataError, ModelError, XwinError
from xwin.serving._gate import Gate
from xwin.serving._text import Growing
from xwin.serving._wire import Envelope, Refused, event
from xwin.serving.desk import Closed, Full
from xwin.serving.job import Gone, Job
from xwin.serving.meters import Meters
from xwin.serving.protocol import Asked, ChatRequest, CompletionRequest
from xwin.serving.served import Served

Json = Any
AGAIN = "1"
"""Seconds after which a client that found no place should come again."""
COLDEST = 1e-6
"""Temperatures below it are 0: the likeliest token, and no logits that overflow."""
ARMS = ("str", "int")
"""Of a union, in what pydantic says of a place; they are no part of the request."""
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1 << 20
    prompt_tokens: int = 1 << 30
    """Longest prompt; it must also fit into the context together with its answer."""
    max_tokens: int = 1 << 30
    """Longest answer; also what a request that does not say gets, as far as it fits."""


@dataclass(frozen=True)
class Api:
    """What the routes do."""

    models: Mapping[str, Served]
    limits: Limits
    meters: Meters

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        served = self._served(asked.model)
        prompt = served.words.prompt(_messages(asked))
        return await self._answer(asked, request, served, [prompt], "chat")

    async def complete(self, asked: CompletionRequest, request: Request) -> Response:
        """Continues texts or tokens as they are."""
        served = self._served(asked.model)
        prompts = [self._tokens(served, prompt) for prompt in asked.prompts]
        return await self._answer(asked, request, served, prompts, "text")

    def listed(self, name: str) -> dict[str, Json]:
        """A model as OpenAI describes it."""
        served = self._served(name)
        return {"id": name, "object": "model", "created": served.since, "owned_by": "xwin-lm", "context_length": served.desk.tokens}

    def _served(self, name: str) -> Served:
        if name not in self.models:
            raise Refused(404, f"there is no model '{name}'; there are: {', '.join(self.models)}", code="model_not_found", param="model")
        return self.models[name]

    @staticmethod
    def _tokens(served: Served, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return served.tokens(prompt)
        size = len(served.tokenizer)
        wrong = next((token for token in prompt if token >= size), None)
        if wrong is not None:
            raise Refused(400, f"the token {wrong} is none: the vocabulary has {size}", param="prompt")
        return tuple(prompt)

    async def _answer(
        self, asked: Asked, request: Request, served: Served, prompts: Sequence[tuple[int, ...]], kind: Literal["chat", "text"]
    ) -> Response:
        sampling = self._sampling(asked, served, prompts)
        read = (lambda ids: served.words.parse(ids).text) if kind == "chat" else served.plain
        answers = [Growing(read, sampling, served.words.stop) for _ in range((asked.n or 1) * len(prompts))]
        if len(answers) > served.desk.places:
            raise Refused(400, f"{len(answers)} answers are asked for at once, and this server writes at most {served.desk.places}", param="n")
        job = Job(served, self.meters, prompts, answers)
        name = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        envelope = Envelope(name, int(time.time()), served.name, kind, asked.wants_logprobs, served.words)
        job.start(sampling, asked.seed)
        grow = job.grow()
        left = asyncio.create_task(_leaving(request, job))
        if not asked.stream:
            try:
                async with aclosing(grow):
                    async for _ in grow:
                        pass
            finally:
                left.cancel()
            return JSONResponse(envelope.whole(answers, sum(map(len, prompts))))
        try:
            first = await anext(grow)  # what goes wrong before the first token has a status of its own
        except (XwinError, asyncio.CancelledError):
            left.cancel()
            raise
        chunks = _chunks(envelope, job, first, grow, left, usage=asked.wants_usage)
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    def _sampling(self, asked: Asked, served: Served, prompts: Sequence[tuple[int, ...]]) -> Sampling:
        """How answers are drawn.

        Raises:
            Refused: something is too long; says the numbers.
        """
        longest, context = max(map(len, prompts)), served.desk.tokens
        if not all(prompts):
            raise Refused(400, "the prompt is empty", param="prompt")
        if longest > self.limits.prompt_tokens:
            what = f"the prompt has {longest} tokens, and this server reads at most {self.limits.prompt_tokens}"
            raise Refused(400, what, code="context_length_exceeded", param="messages")
        if asked.longest is not None and asked.longest > self.limits.max_tokens:
            raise Refused(400, f"max_tokens is {asked.longest}, and this server writes at most {self.limits.max_tokens}", param="max_tokens")
        room = context - longest
        if room < (asked.longest or 1):
            what = f"{longest} prompt tokens and {asked.longest or 1} new ones exceed the context of {context} tokens"
            raise Refused(400, what, code="context_length_exceeded", param="messages")
        return Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature * (asked.temperature >= COLDEST),
            top_p=asked.top_p or 1.0,
            top_k=asked.top_k or 0,
            min_p=asked.min_p or 0.0,
            max_tokens=asked.longest or min(room, self.limits.max_tokens),
            stop=asked.ends,
        )


async def _leaving(request: Request, job: Job) -> None:
    """Waits until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def _chunks(
    envelope: Envelope, job: Job, first: int, grow: AsyncGenerator[int], left: asyncio.Task[None], *, usage: bool
) -> AsyncIterator[bytes]:
    """The stream, from the first token on. An error in the middle of it is its last event, and no [DONE] follows."""
    begun: set[int] = set()

    def chunk(index: int) -> bytes:
        answer = job.answers[index]
        piece = answer.take()
        if not (piece.text or piece.tokens or answer.finish or index not in begun):
            return b""
        fresh = index not in begun
        begun.add(index)
        return event(envelope.chunk(index, piece, answer.finish, first=fresh))

    try:
        async with aclosing(grow):
            yield chunk(first)
            async for index in grow:
                yield chunk(index)
        if usage:
            yield event(envelope.counted(job.answers, sum(map(len, job.prompts))))
        yield DONE
    except Gone:
        return
    except XwinError as error:
        yield event(_refusal(error).body())
    finally:
        left.cancel()


def make_app(models: Mapping[str, Served], limits: Limits, meters: Meters, *, key: str = "") -> Gate:
    """The ASGI application.

    Args:
        models: name -> model, its desk open; closed when the application ends.
        limits: of requests.
        meters: what is counted.
        key: what clients must send; "" = nothing.
    """
    api = Api(models, limits, meters)
    meters.know(models)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for served in models.values():
            await asyncio.to_thread(served.desk.close)

    app = FastAPI(title="Xwin-LM", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=limits.body_bytes)
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/healthz", "/metrics", "/openapi.json"}

    def count(path: str, status: int) -> None:
        meters.http.labels(path if path in paths else "other", str(status)).inc()  # what clients invent must not fill the memory

    app.post("/v1/chat/completions")(api.chat)
    app.post("/v1/completions")(api.complete)
    _add_information(app, api)
    for kind in (RequestValidationError, HTTPException, XwinError, Refused):
        app.add_exception_handler(kind, _say)
    app.add_exception_handler(Exception, _say_nothing)
    return Gate(app, limits.body_bytes, key, count)


def _add_information(app: FastAPI, api: Api) -> None:
    """The routes that tell about the server."""

    @app.get("/v1/models")
    def models() -> dict[str, Json]:
        return {"object": "list", "data": [api.listed(name) for name in api.models]}

    @app.get("/v1/models/{model:path}")
    def model(model: str) -> dict[str, Json]:
        return api.listed(model)

    @app.get("/healthz")
    def health() -> JSONResponse:
        closed = [name for name, served in api.models.items() if not served.desk.open]
        return JSONResponse({"status": "failed", "models": closed} if closed else {"status": "ok"}, 503 if closed else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        for name, served in api.models.items():
            api.meters.taken.labels(name).set(served.desk.taken)
            api.meters.places.labels(name).set(served.desk.places)
        return Response(api.meters.text(), media_type="text/plain; version=0.0.4")


def _messages(asked: ChatRequest) -> Any:
    """The turns.

    Raises:
        DataError: they do not alternate, or one is empty.
    """
    rows = [{"role": m.role.replace("developer", "system"), "content": m.text} for m in asked.messages]
    return conversation_from_json({"messages": rows}, "messages").messages


async def _say(_: Request, error: Exception) -> JSONResponse:
    refused = _refusal(error)
    return JSONResponse(refused.body(), refused.status, refused.headers)


async def _say_nothing(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - its traceback is in the log; a client learns nothing from it
    return JSONResponse(Refused(500, "the server failed").body(), 500)


def _refusal(error: Exception) -> Refused:
    """What an error means to a client."""
    match error:
        case Refused():
            return error
        case RequestValidationError() | ValidationError():
            first = max(error.errors(), key=lambda each: len(each["loc"]))  # of the arms of a union, the one that fits best
            param = ".".join(str(part) for part in first["loc"][1:] if part not in ARMS and "[" not in str(part))
            return Refused(400, f"{param}: {first['msg']}" if param else str(first["msg"]), param=param or None)
        case HTTPException():
            return Refused(error.status_code, str(error.detail), headers=error.headers)
        case Full():
            return Refused(429, str(error), code="queue_full", headers={"Retry-After": AGAIN})
        case Gone():
            return Refused(499, "the client went away")
        case DataError() | ModelError():
            return Refused(400, str(error))
        case Closed():
            return Refused(503, str(error), code="closed")
        case _:
            return Refused(500, str(error))
