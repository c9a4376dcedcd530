"""One HTTP/1.1 connection: bytes to requests, responses to bytes, in order.

Invariants:
- responses leave in the order of their requests; one request of a connection is worked on at a time, and
  what a client sends ahead stays in the kernel's buffer, not in ours;
- every state a client can keep us waiting in has a deadline (`Timeouts`), and every byte it can make us
  hold has a limit: header bytes, body bytes, and the bodies of all connections together (`Budget`);
- what cannot be parsed ends this connection only, after the requests before it were answered;
- a refusal is written before the connection closes, and read: its input is drained for a moment, because
  closing on unread bytes makes the kernel throw the answer away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import NoReturn, Protocol

import httptools
from msgspec import Struct

from edge_agent.local_api.limits import (
    FEED_BYTES,
    MAX_BARREN_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    SMALL_BODY_BYTES,
    Budget,
    Timeouts,
)
from edge_agent.local_api.routes import RETRY_AFTER, Request, Response, error_response
from edge_agent.local_api.transport import Transport

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# RFC 9110; the standard library's table costs its import
_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 417: "Expectation Failed", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}  # fmt: skip
_ONCE = frozenset({"host", "content-length", "transfer-encoding", "expect"})


class Host(Protocol):
    """The server as a connection needs it. Every call is on the loop's thread."""

    timeouts: Timeouts
    budget: Budget
    max_body_bytes: int

    def now(self) -> float:
        """The loop's clock, in seconds."""

    def opened(self, connection: Connection) -> Response | None:
        """Register a connection; a Response refuses it."""

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""

    def dispatch(self, connection: Connection, request: Request, wrap: Callable[[Response], bytes]) -> Response | None:
        """Answer `request` at once, or, with None, by `connection.reply` later."""


class _State(StrEnum):
    """What the connection waits for; the value names its field of `Timeouts`."""

    IDLE = "idle_s"
    HEADER = "header_s"
    BODY = "body_s"
    LEAVING = "linger_s"


class _Refused(Exception):
    """Stops the parser from inside its callback; the refusal itself is already kept."""


class _Asked(Struct, frozen=True):
    request: Request
    keep_alive: bool

    def wrap(self, response: Response) -> bytes:
        return response_bytes(response, keep_alive=self.keep_alive, with_body=self.request.method != "HEAD")


def response_bytes(response: Response, *, keep_alive: bool, with_body: bool = True) -> bytes:
    """A response on the wire. A HEAD's has the length of the body it leaves out."""
    extra = "".join([f"{name}: {value}\r\n" for name, value in response.headers]) if response.headers else ""
    head = (
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n{extra}\r\n"
    ).encode("latin-1")
    return head + response.body if with_body else head


class Connection:
    """The protocol of one accepted connection. `deadline` is when `expire` is due, on the host's clock."""

    _transport: Transport
    _body: bytes | bytearray
    _headers: dict[str, str]
    _barren_bytes: int

    def __init__(self, host: Host) -> None:
        self.deadline = float("inf")
        self._host = host
        self._parser = httptools.HttpRequestParser(self)
        self._state = _State.IDLE
        self._unfed = b""
        self._asked: deque[_Asked] = deque()
        self._current: _Asked | None = None
        self._last_words: Response | None = None
        self._owes_continue = False
        self._reading_paused = False
        self._writing_paused = False
        self._no_more_requests = False
        self._charged_bytes = 0
        self._start_request()

    # What the transport calls.

    def connection_made(self, transport: Transport) -> None:
        """Register with the host, or be refused by it."""
        self._transport = transport
        self._enter(_State.IDLE)
        if refusal := self._host.opened(self):
            self._leave(refusal)

    def connection_lost(self) -> None:
        """Give back what this connection holds."""
        self._asked.clear()
        self._release_body()
        self._host.closed(self)

    def data_received(self, data: bytes) -> None:
        """Parse, or keep the bytes and read no more while something else must come first."""
        if self._state is not _State.LEAVING:
            self._unfed = self._unfed + data if self._unfed else data
            self._pump()

    def eof_received(self) -> bool:
        """The client closed its half: answer what it asked, then close ours."""
        self._no_more_requests = True
        return self._state is not _State.LEAVING and self._is_blocked

    def pause_writing(self) -> None:
        """The client reads slower than we answer: it has `write_s` to catch up."""
        self._writing_paused = True
        self.deadline = self._host.now() + self._host.timeouts.write_s

    def resume_writing(self) -> None:
        """The client caught up."""
        self._writing_paused = False
        if self._state is not _State.LEAVING:
            self.deadline = float("inf")
            self._pump()

    # What the host calls.

    @property
    def idle_for_s(self) -> float:
        """How long nothing was asked and nothing is owed; minus infinity while something is."""
        if self._state is not _State.IDLE or self._is_blocked:
            return float("-inf")
        return self._host.now() - (self.deadline - self._host.timeouts.idle_s)

    def reply(self, payload: bytes) -> None:
        """The answer to the request that was dispatched last."""
        self._answer(payload)
        self._pump()

    def finish(self) -> None:
        """Take no further request: close now, or after the answer that is on its way."""
        self._no_more_requests = True
        self._pump()

    def expire(self) -> None:
        """The deadline of the present state has passed."""
        if self._state is _State.LEAVING or self._writing_paused:
            self._transport.abort()
        elif self._state is _State.IDLE:
            self._close()
        else:
            self._leave(error_response(408, "the request did not arrive in time: send it without pauses"))

    def abort(self) -> None:
        """Close without a word."""
        self._transport.abort()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request starts."""
        self._start_request()
        self._enter(_State.HEADER)

    def on_url(self, part: bytes) -> None:
        """A piece of the target."""
        self._url += part
        if len(self._url) > MAX_URL_BYTES:
            self._refuse(414, f"the URL exceeds {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a chunked body: those mean nothing here."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the headers exceed {MAX_HEADERS} fields or {MAX_HEADER_BYTES} bytes")
        if self._state is _State.HEADER:
            key = name.decode("latin-1").lower()
            if key in _ONCE and key in self._headers:
                self._refuse(400, f"the header {key} is there twice")
            self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole: refuse here what need not be read any further."""
        headers = self._headers
        self._enter(_State.BODY)
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(505, "speak HTTP/1.1")
        if version == "1.1" and "host" not in headers:
            self._refuse(400, "an HTTP/1.1 request needs a Host header")
        length = int(headers.get("content-length", "0"))
        if length > self._host.max_body_bytes:
            self._refuse_body()
        chunked = "transfer-encoding" in headers
        expect = headers.get("expect", "").lower()
        if expect and expect != "100-continue":
            self._refuse(417, "the only expectation that can be met is 100-continue")
        if expect and (chunked or length > 0) and version == "1.1":
            self._owes_continue = True

    def on_body(self, part: bytes) -> None:
        """A piece of the body."""
        size = len(self._body) + len(part)
        if size > self._host.max_body_bytes:
            self._refuse_body()
        if size > SMALL_BODY_BYTES:
            if not self._host.budget.take(size - self._charged_bytes):
                self._refuse(503, "other large requests fill the agent's memory: try again shortly", RETRY_AFTER)
            self._charged_bytes = size
        # one piece is the rule and needs no copy; many tiny chunks must not become many tiny objects
        if not self._body:
            self._body = part
        elif isinstance(self._body, bytearray):
            self._body += part
        else:
            self._body = bytearray(self._body + part)

    def on_message_complete(self) -> None:
        """A whole request: it waits for its turn."""
        if self._parser.should_upgrade():
            return  # the parser stops after the head, and _decline_upgrade goes on
        method = self._parser.get_method().decode()
        request = Request(method=method, path=_path_of(self._url), body=self._body, headers=self._headers)
        self._body = b""
        self._owes_continue = False
        self._asked.append(_Asked(request, bool(self._parser.should_keep_alive())))
        self._enter(_State.IDLE)

    # How it works.

    @property
    def _is_blocked(self) -> bool:
        return self._current is not None or self._writing_paused

    def _pump(self) -> None:
        """Work on what is there until something must be waited for."""
        while not self._is_blocked and self._state is not _State.LEAVING:
            if self._asked:
                self._dispatch()
            elif self._last_words is not None:
                self._leave(self._last_words)
            elif self._unfed:
                self._parse_some()
            elif self._no_more_requests:
                self._close()
            else:
                self._await_input()
                return
        if self._unfed and not self._reading_paused and self._state is not _State.LEAVING:
            self._reading_paused = True
            self._transport.pause_reading()

    def _await_input(self) -> None:
        if self._owes_continue:
            self._owes_continue = False
            self._transport.write(_CONTINUE)
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self.deadline == float("inf"):
            self._enter(self._state)

    def _dispatch(self) -> None:
        self._current = current = self._asked.popleft()
        self.deadline = float("inf")
        if response := self._host.dispatch(self, current.request, current.wrap):
            self._answer(current.wrap(response))

    def _answer(self, payload: bytes) -> None:
        current, self._current = self._current, None
        self._release_body()
        if current is None or self._state is _State.LEAVING or self._transport.is_closing:
            return
        self._transport.write(payload)
        if not current.keep_alive:
            self._close()

    def _parse_some(self) -> None:
        data, self._unfed = self._unfed, b""
        position = 0
        while position < len(data) and not self._asked and self._last_words is None:
            chunk = data[position : position + FEED_BYTES]
            position += len(chunk)
            held = len(self._body)
            self._parse(chunk)
            self._barren_bytes = self._barren_bytes + len(chunk) if len(self._body) <= held else 0
            if self._barren_bytes > MAX_BARREN_BYTES and not self._asked and self._last_words is None:
                self._last_words = error_response(431, f"the headers exceed {MAX_HEADER_BYTES} bytes")
        self._unfed = data[position:]

    def _parse(self, chunk: bytes) -> None:
        while chunk and self._last_words is None:
            try:
                self._parser.feed_data(chunk)
            except httptools.HttpParserUpgrade as upgrade:
                chunk = self._decline_upgrade() + chunk[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                if self._last_words is None:
                    self._last_words = error_response(400, f"this is not HTTP/1.1: {error}")
            else:
                return

    def _decline_upgrade(self) -> bytes:
        """The same head without its Upgrade, which a server may ignore, for a parser that would stop at it."""
        method: bytes = self._parser.get_method()
        if method == b"CONNECT":
            self._last_words = error_response(405, "this is no proxy", headers=(("Allow", "GET, HEAD, POST"),))
            return b""
        self._parser = httptools.HttpRequestParser(self)
        kept = [f"{name}: {value}\r\n" for name, value in self._headers.items() if name not in ("upgrade", "expect")]
        return method + b" " + self._url + b" HTTP/1.1\r\n" + "".join(kept).encode("latin-1") + b"\r\n"

    def _start_request(self) -> None:
        self._url: bytes = b""
        self._headers = {}
        self._header_count = 0
        self._header_bytes = 0
        self._barren_bytes = 0
        self._body = b""

    def _enter(self, state: _State) -> None:
        self._state = state
        stay_s: float = getattr(self._host.timeouts, state)
        self.deadline = self._host.now() + stay_s

    def _refuse(self, status: int, message: str, *headers: tuple[str, str]) -> NoReturn:
        self._last_words = error_response(status, message, headers=headers)
        raise _Refused

    def _refuse_body(self) -> NoReturn:
        self._refuse(413, f"the body exceeds {self._host.max_body_bytes} bytes: send less, or raise the agent's limit")

    def _release_body(self) -> None:
        self._host.budget.left_bytes += self._charged_bytes
        self._charged_bytes = 0

    def _leave(self, refusal: Response) -> None:
        self._transport.write(response_bytes(refusal, keep_alive=False))
        self._unfed = b""
        self._release_body()
        self._transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._enter(_State.LEAVING)

    def _close(self) -> None:
        self._unfed = b""
        self._enter(_State.LEAVING)
        self.deadline = self._host.now() + self._host.timeouts.write_s
        self._transport.close()


def _path_of(url: bytes) -> str:
    if not url.startswith(b"/"):  # the absolute form that proxies use: http://host/path
        try:
            url = httptools.parse_url(url).path or b"/"
        except httptools.HttpParserInvalidURLError:
            return "*"
    return url.partition(b"?")[0].decode("latin-1")
