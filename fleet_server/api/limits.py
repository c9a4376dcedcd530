"""Bounds every request's body, and counts requests, before anything else sees them.

Invariant: no handler is given more bytes than its limit, whatever the request's headers claim.
"""

from __future__ import annotations

import threading
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet_protocol.manifest import MAX_ARTIFACT_BYTES
from fleet_server.api.problems import TooLargeError, problem

MAX_BODY_BYTES = 2 * 1024 * 1024
"""More than the largest envelope."""
_ARTIFACTS = "/api/v1/artifacts/"


class RequestCounters:
    """How many requests were answered, by method and status. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, int]] = Counter()

    def add(self, method: str, status: int) -> None:
        """Count one."""
        with self._lock:
            self._counts[(method, status)] += 1

    def snapshot(self) -> dict[tuple[str, int], int]:
        """The counts as they are now."""
        with self._lock:
            return dict(self._counts)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestGate:
    """The outermost ASGI layer."""

    def __init__(self, app: ASGIApp, *, counters: RequestCounters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counters.add(method, message["status"])
            await send(message)

        limit_bytes = MAX_ARTIFACT_BYTES if scope["path"].startswith(_ARTIFACTS) else MAX_BODY_BYTES
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit_bytes:
            refused = TooLargeError(limit_bytes)
            response = problem(
                413, "too-large", "The body is too large", str(refused.detail), headers=dict(refused.headers or {})
            )
            await response(scope, receive, count_and_send)
            return
        received_bytes = 0

        async def bounded_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > limit_bytes:
                raise TooLargeError(limit_bytes)
            return message

        await self._app(scope, bounded_receive, count_and_send)
