"""`python -m benchmarks.stacks.serve STACK PORT`: the handler behind one stack, until it is stopped."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"


def reactor(port: int) -> None:
    """The agent's own reactor and connection; the handler on the loop's thread."""
    from benchmarks.stacks.handler import answer
    from edge_agent.local_api.connection import Connection
    from edge_agent.local_api.limits import Budget, Timeouts
    from edge_agent.local_api.reactor import Reactor
    from edge_agent.local_api.routes import Request, Response

    class AnswersAtOnce:
        timeouts = Timeouts()
        max_body_bytes = 16 * 1024 * 1024
        budget = Budget(left_bytes=4 * max_body_bytes)

        def now(self) -> float:
            return loop.time()

        def opened(self, _: Connection) -> None:
            return None

        def closed(self, _: Connection) -> None:
            return None

        def dispatch(self, _: Connection, request: Request, __: Callable[[Response], bytes]) -> Response:
            return Response(status=200, body=answer(request.body))

    loop = Reactor()
    loop.listen(socket.create_server((HOST, port), backlog=256), lambda: Connection(AnswersAtOnce()))
    loop.run()


def asyncio_protocol(port: int) -> None:
    """A protocol on httptools, on asyncio's own loop."""
    import asyncio

    asyncio.run(_serve_protocol(port))


def uvloop_protocol(port: int) -> None:
    """The same protocol on uvloop."""
    import uvloop

    uvloop.run(_serve_protocol(port))


def uvicorn(port: int) -> None:
    """A bare ASGI application on uvicorn, uvloop and httptools."""
    import uvicorn as server

    server.run(
        "benchmarks.stacks.apps:asgi", host=HOST, port=port, loop="uvloop", http="httptools",
        lifespan="off", access_log=False, log_level="warning",
    )  # fmt: skip


def granian(port: int) -> None:
    """A bare RSGI application on granian, one worker."""
    from granian.constants import Interfaces
    from granian.server import Server

    Server(
        "benchmarks.stacks.apps:rsgi", address=HOST, port=port, interface=Interfaces.RSGI, workers=1, log_enabled=False
    ).serve()


async def _serve_protocol(port: int) -> None:
    import asyncio

    import httptools

    from benchmarks.stacks.handler import answer

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.parser = httptools.HttpRequestParser(self)
            self.body = b""

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_body(self, part: bytes) -> None:
            self.body += part

        def on_message_complete(self) -> None:
            content, self.body = answer(self.body), b""
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
            self.transport.write(head + content)

    server = await asyncio.get_running_loop().create_server(Protocol, HOST, port, backlog=256)
    await server.serve_forever()


STACKS = {
    "reactor": reactor,
    "asyncio": asyncio_protocol,
    "uvloop": uvloop_protocol,
    "uvicorn": uvicorn,
    "granian": granian,
}
IMPORTS = {
    "reactor": "edge_agent.local_api.connection, edge_agent.local_api.reactor",
    "asyncio": "asyncio, httptools",
    "uvloop": "uvloop, asyncio, httptools",
    "uvicorn": "uvicorn, uvicorn.protocols.http.httptools_impl, uvicorn.lifespan.off, uvloop, asyncio",
    "granian": "granian.server, granian.constants",
}
"""What each stack makes a process import."""

if __name__ == "__main__":
    STACKS[sys.argv[1]](int(sys.argv[2]))
