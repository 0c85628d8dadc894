"""A real OpenAI-compatible HTTP server on localhost that answers by a rule: what judges and clients are tested against."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Say:
    """One HTTP answer."""

    text: str | None = ""
    status: int = 200
    raw: bytes | None = None
    """The whole body, in place of a completion."""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Silence before it."""
    cut: bool = False
    """Closes the connection in the middle of the body."""
    finish: str | None = "stop"
    first: dict[str, float] | None = None
    """Log-probabilities of the first token."""
    pieces: tuple[str, ...] = ()
    """Of a stream."""


def failing(status: int, message: str = "no") -> Say:
    """An error as OpenAI writes it; to be tried again after a millisecond."""
    return Say(status=status, raw=json.dumps({"error": {"message": message}}).encode(), headers={"retry-after-ms": "1"})


Rule = Callable[[Json, int], Say]
"""(body of the request, how many came before it) -> answer"""


@dataclass
class Endpoint:
    """Where it is, and what it was asked."""

    url: str
    asked: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def prompts(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.asked]


@contextmanager
def endpoint(rule: Rule) -> Iterator[Endpoint]:
    """The server, until the block ends."""
    found = Endpoint("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with found.lock:
                number = len(found.asked)
                found.asked.append(body)
                found.headers.append({name.lower(): value for name, value in self.headers.items()})
            say = rule(body, number) if self.path.endswith("/chat/completions") else failing(404)
            found.closing.wait(say.seconds)
            if say.pieces and body.get("stream"):
                self._stream(say)
            else:
                self._whole(say, body)

        def _whole(self, say: Say, body: Json) -> None:
            content = say.raw if say.raw is not None else json.dumps(completion(say, body)).encode()
            self.send_response(say.status)
            for name, value in {"content-type": say.kind, "content-length": str(len(content)), **say.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if say.cut else content)
            self.close_connection = self.close_connection or say.cut

        def _stream(self, say: Say) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            last = [] if say.cut else [{"choices": [{"index": 0, "delta": {}, "finish_reason": say.finish}]}]
            for chunk in [*({"choices": [{"index": 0, "delta": {"content": p}}]} for p in say.pieces), *last]:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if not say.cut:
                self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has gone is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def completion(say: Say, body: Json) -> Json:
    """A chat completion; a token is a word."""
    choice: Json = {"index": 0, "message": {"role": "assistant", "content": say.text}, "finish_reason": say.finish}
    if say.first is not None and body.get("logprobs"):
        top = [{"token": token, "logprob": logprob} for token, logprob in say.first.items()]
        choice["logprobs"] = {"content": [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]}
    read = sum(len(m["content"].split()) for m in body["messages"])
    usage = {"prompt_tokens": read, "completion_tokens": len((say.text or "").split()), "total_tokens": 0}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}
