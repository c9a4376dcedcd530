"""Bounds every request's body, counts requests, and guards every answer, before and after anything else sees them.

Invariants:
- no handler is given more bytes than its limit, whatever the request's headers claim;
- every answer tells browsers not to guess its type, not to frame it and not to send its address on; no answer allows
  another origin (CORS is off);
- an address over its limit of wrong credentials waits HOLD_S for each further answer, with at most MAX_HELD held.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet_protocol.manifest import MAX_ARTIFACT_BYTES
from fleet_server.api.problems import TooLargeError, problem
from fleet_server.api.rate_limits import STATE, WRONG_CREDENTIAL, Standing

MAX_BODY_BYTES = 2 * 1024 * 1024
"""More than the largest envelope."""
HOLD_S = 1.0
MAX_HELD = 256
_ARTIFACTS = "/api/v1/artifacts/"
_GUARDS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_DATA_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NOT_KEPT = (b"cache-control", b"no-store")


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
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "other"
        state = scope.setdefault("state", {})

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counters.add(method, message["status"])
                message["headers"] = guarded(list(message.get("headers", ())), state.get(STATE))
                if message["status"] == 429 and state.get(WRONG_CREDENTIAL):
                    await self._hold()
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

    async def _hold(self) -> None:
        """Make whoever guesses wait, as long as that does not itself fill the server."""
        if self._held >= MAX_HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(HOLD_S)
        finally:
            self._held -= 1


def guarded(headers: list[tuple[bytes, bytes]], standing: Standing | None) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that guard it, and where its sender stands with a limit."""
    present = dict(headers)
    added = [guard for guard in _GUARDS if guard[0] not in present]
    if b"json" in present.get(b"content-type", b""):
        added += [guard for guard in (_DATA_POLICY, _NOT_KEPT) if guard[0] not in present]
    return headers + added + (standing.headers() if standing else [])
