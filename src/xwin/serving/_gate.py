"""What every HTTP request passes: its key and its length are checked, and the answer's status is counted."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xwin.serving._wire import Refused

OPEN = ("/healthz",)
"""Paths that need no key."""


@dataclass(frozen=True)
class Gate:
    """An ASGI application around another one."""

    app: ASGIApp
    body_bytes: int
    """Largest body that is announced; one that is not announced is measured by the application while it comes."""
    key: str
    """What clients must send as `Authorization: Bearer KEY`; "" = nothing."""
    count: Callable[[str, int], None]
    """Told the path and the status of each answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(scope["path"], message["status"])
            await send(message)

        refused = self._refused(scope["path"], dict(scope["headers"]))
        app = self.app if refused is None else JSONResponse(refused.body(), refused.status)
        await app(scope, receive, counted)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> Refused | None:
        sent, length = headers.get(b"authorization", b""), headers.get(b"content-length", b"0")
        if self.key and path not in OPEN and not hmac.compare_digest(sent, f"Bearer {self.key}".encode()):
            return Refused(401, "this server wants `Authorization: Bearer KEY` with its key", code="invalid_api_key")
        if length.isdigit() and int(length) > self.body_bytes:
            return Refused(413, f"the body has {int(length)} bytes, and this server reads at most {self.body_bytes}", code="request_too_large")
        return None
