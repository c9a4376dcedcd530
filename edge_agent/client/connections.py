"""HTTP/1.1 to one local agent: kept-alive connections over TCP or a Unix socket, for any number of threads.

Invariants:
- a request is sent again only where it surely was not processed: nothing of it was sent yet (a kept connection
  turned out to be closed), or it changes nothing (GET);
- every wait ends with the deadline that the caller gave; a connection whose answer was not read to its end is closed;
- at most `max_connections` exist at a time, and what an answer may hold is bounded.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import httptools

from edge_agent.errors import DeadlineExceededError, NetworkError

MAX_ANSWER_BYTES = 1024 * 1024 * 1024
MAX_IDLE_S = 30.0
"""A connection that was idle for longer is not used again: the agent may be about to close it."""
_RECEIVE_BYTES = 256 * 1024
_SMALL_BYTES = 16 * 1024
"""Up to this a request is joined and sent as one piece; above, it goes out from where it lies."""

Piece = bytes | memoryview


class Answer:
    """One HTTP response, while and after it is read. Header names are in lower case."""

    __slots__ = ("body", "headers", "is_complete", "keeps_alive", "parser", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.is_complete = False
        self.keeps_alive = False
        self.parser: Any = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, content: bytes) -> None:
        """Called by the parser."""
        if len(self.body) + len(content) > MAX_ANSWER_BYTES:
            raise NetworkError(f"the agent's answer exceeds {MAX_ANSWER_BYTES} bytes")
        self.body += content

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.status = self.parser.get_status_code()
        self.keeps_alive = self.parser.should_keep_alive()
        self.is_complete = True


class _Connection:
    __slots__ = ("_closing", "idle_since", "is_used", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._closing = select.poll()
        self._closing.register(sock, select.POLLIN)
        self.is_used = False
        self.idle_since = 0.0

    def is_open(self) -> bool:
        """Whether the agent has not closed it, nor said anything unasked, as far as this side can know."""
        return not self._closing.poll(0)

    def send(self, pieces: Sequence[Piece], deadline: float) -> None:
        sock = self.sock
        sock.settimeout(_left(deadline))
        if len(pieces) == 1 or sum(map(len, pieces)) <= _SMALL_BYTES:
            sock.sendall(b"".join(pieces))
            return
        rest = [memoryview(piece) for piece in pieces]
        while rest:
            sent = sock.sendmsg(rest[:16])
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][sent:]
                sock.settimeout(_left(deadline))

    def receive(self, deadline: float) -> Answer:
        answer = Answer()
        sock, parser = self.sock, answer.parser
        sock.settimeout(_left(deadline))
        while True:
            content = sock.recv(_RECEIVE_BYTES)
            if not content:
                raise ConnectionResetError("the agent closed the connection")
            parser.feed_data(content)
            if answer.is_complete:
                answer.parser = None  # it and its answer hold each other
                return answer
            sock.settimeout(_left(deadline))


class Pool:
    """Connections to one address: (host, port), or the path of a Unix socket."""

    def __init__(self, address: tuple[str, int] | str, *, name: str, max_connections: int) -> None:
        self._address, self._name = address, name
        self._idle: deque[_Connection] = deque()
        self._places: SimpleQueue[None] = SimpleQueue()  # quicker than a semaphore, which is made of Python
        for _ in range(max_connections):
            self._places.put(None)
        self._is_closed = False

    def close(self) -> None:
        """Close what is idle now, and every other connection at the end of its request."""
        self._is_closed = True
        while self._idle:
            try:
                self._idle.pop().sock.close()
            except IndexError:
                return

    def exchange(self, pieces: Sequence[Piece], *, timeout_s: float, is_safe: bool) -> Answer:
        """Send a request, return its answer. `is_safe` says that it may be sent twice.

        Raises NetworkError, and DeadlineExceededError after `timeout_s`.
        """
        if self._is_closed:
            raise NetworkError("this client is closed")
        deadline = time.monotonic() + timeout_s
        try:
            self._places.get(timeout=timeout_s)
        except Empty:
            raise self._too_late(timeout_s) from None
        try:
            while True:
                connection = self._take(deadline)
                was_used = connection.is_used
                try:
                    return self._ask(connection, pieces, deadline)
                except TimeoutError:
                    raise
                except (OSError, httptools.HttpParserError):
                    if not (was_used and is_safe):
                        raise
        except TimeoutError:
            raise self._too_late(timeout_s) from None
        except httptools.HttpParserError as error:
            raise NetworkError(f"{self._name} does not speak HTTP: {error}") from None
        except OSError as error:
            raise NetworkError(f"no answer from the agent at {self._name}: {error.strerror or error}") from None
        finally:
            self._places.put(None)

    def _take(self, deadline: float) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()  # the one used last: the others grow old and go
            except IndexError:
                return _Connection(self._connect(deadline))
            if time.monotonic() - connection.idle_since <= MAX_IDLE_S and connection.is_open():
                return connection
            connection.sock.close()

    def _ask(self, connection: _Connection, pieces: Sequence[Piece], deadline: float) -> Answer:
        try:
            connection.send(pieces, deadline)
            answer = connection.receive(deadline)
        except BaseException:
            connection.sock.close()
            raise
        if answer.keeps_alive and not self._is_closed:
            connection.is_used, connection.idle_since = True, time.monotonic()
            self._idle.append(connection)
        else:
            connection.sock.close()
        return answer

    def _connect(self, deadline: float) -> socket.socket:
        if isinstance(self._address, tuple):
            sock = socket.create_connection(self._address, timeout=_left(deadline))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(self._address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _too_late(self, timeout_s: float) -> DeadlineExceededError:
        return DeadlineExceededError(f"the agent at {self._name} did not answer within {timeout_s:g} s")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
