"""The handler as an ASGI and as an RSGI application, as small as either can be."""

from __future__ import annotations

from typing import Any

from benchmarks.stacks.handler import answer

_JSON = b"application/json"


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """For uvicorn."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    content = answer(body)
    headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def rsgi(_: Any, protocol: Any) -> None:
    """For granian."""
    protocol.response_bytes(200, [("content-type", _JSON.decode())], answer(await protocol()))
