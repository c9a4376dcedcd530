"""One connected socket of a reactor: writes what fits at once, keeps the rest, reads while its handler wants to.

Invariants:
- a handler hears `connection_made` first and `connection_lost` last, once, and never from inside a call it made;
- what a slow reader leaves unsent is kept, in order; beyond HIGH_WATER_BYTES the handler is asked to pause, at
  LOW_WATER_BYTES to go on;
- a handler that fails ends its own connection only;
- a socket is watched for exactly what is wanted of it, and not at all when that is nothing: a hang-up that
  nobody wants to hear of would otherwise wake the loop in every round.
"""

from __future__ import annotations

import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

RECEIVE_BYTES = 64 * 1024
"""The most that one read takes; more waits in the kernel for the next round."""
HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024

# poll and epoll give these the same values
READ, WRITE = select.POLLIN, select.POLLOUT

_LOG = logging.getLogger(__name__)


class Loop(Protocol):
    """A reactor as its transports need it."""

    def watch(self, number: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready` whenever one of `events` holds for the descriptor."""
        ...

    def rewatch(self, number: int, events: int) -> None:
        """Change which events a watched descriptor is watched for."""
        ...

    def unwatch(self, number: int) -> None:
        """Watch it no more."""
        ...

    def call_soon(self, callback: Callable[..., None]) -> None:
        """Run `callback` at the end of this round."""
        ...

    def forget(self, transport: Transport) -> None:
        """The transport has ended."""
        ...


class Handler(Protocol):
    """What a transport tells its connection."""

    def connection_made(self, transport: Transport) -> None:
        """The connection is open."""
        ...

    def connection_lost(self) -> None:
        """The connection is gone, however it ended."""
        ...

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        ...

    def eof_received(self) -> bool:
        """The peer sends no more; False closes our half too."""
        ...

    def pause_writing(self) -> None:
        """More waits to be sent than HIGH_WATER_BYTES."""
        ...

    def resume_writing(self) -> None:
        """It is down to LOW_WATER_BYTES."""
        ...


class Transport:
    """An accepted socket and its handler. Every call is on the loop's thread."""

    __slots__ = (
        "_at_eof", "_eof_wanted", "_events", "_handler", "_is_lost", "_number", "_paused_handler", "_reactor",
        "_reading", "_socket", "_unsent", "_unsent_bytes", "is_closing",
    )  # fmt: skip

    def __init__(self, *, reactor: Loop, connected: socket.socket, handler: Handler) -> None:
        self._reactor, self._socket, self._handler = reactor, connected, handler
        self._number = connected.fileno()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._events = 0
        self._reading = True
        self._paused_handler = False
        self._eof_wanted = False
        self._at_eof = False
        self._is_lost = False
        self.is_closing = False
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            with suppress(OSError):  # the peer may be gone already
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()
        try:
            handler.connection_made(self)
        except Exception:  # noqa: BLE001 - logged with its trace; it ends its own connection, never the loop
            self._fail()

    def write(self, content: bytes) -> None:
        """Send `content`, now as far as the kernel takes it. Nothing is sent once the transport is closing."""
        if self.is_closing or self._eof_wanted:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.send(content)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(content):
                return
        self._unsent.append(memoryview(content)[sent:])
        self._unsent_bytes += len(content) - sent
        self._watch()
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused_handler:
            self._paused_handler = True
            self._handler.pause_writing()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffer."""
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        """Read again."""
        self._reading = True
        self._watch()

    def write_eof(self) -> None:
        """Close our half when everything was sent."""
        if not self._eof_wanted and not self.is_closing:
            self._eof_wanted = True
            self._finish_writing()

    def close(self) -> None:
        """Read no more, send what is left, end."""
        if not self.is_closing:
            self.is_closing = True
            if self._unsent:
                self._watch()
            else:
                self._end()

    def abort(self) -> None:
        """End now; what is left is not sent."""
        self.is_closing = True
        self._unsent.clear()
        self._unsent_bytes = 0
        self._end()

    def _end(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._watch()
            self._reactor.call_soon(self._lose)

    def _lose(self) -> None:
        self._reactor.forget(self)
        try:
            self._handler.connection_lost()
        finally:
            self._socket.close()

    def _watch(self) -> None:
        if self._is_lost:
            events = 0
        else:
            wants_read = self._reading and not self.is_closing and not self._at_eof
            events = (READ if wants_read else 0) | (WRITE if self._unsent else 0)
        if events == self._events:
            return
        # with nothing to watch for, a hang-up would still be told, in every turn: it is unwatched then
        if not events:
            self._reactor.unwatch(self._number)
        elif self._events:
            self._reactor.rewatch(self._number, events)
        else:
            self._reactor.watch(self._number, events, self._ready)
        self._events = events

    def _ready(self, came: int) -> None:
        try:
            if self._unsent and came & ~READ:
                self._send_rest()
            if self._events & READ and came & ~WRITE:
                self._receive()
        except Exception:  # noqa: BLE001 - as above
            self._fail()

    def _receive(self) -> None:
        try:
            content = self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if content:
            self._handler.data_received(content)
        else:
            self._at_eof = True
            self._watch()
            if not self._handler.eof_received():
                self.close()

    def _send_rest(self) -> None:
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._socket.send(first)
                self._unsent_bytes -= sent
                if sent == len(first):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = first[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.abort()
            return
        self._finish_writing()
        if self._paused_handler and self._unsent_bytes <= LOW_WATER_BYTES:
            self._paused_handler = False
            self._handler.resume_writing()

    def _finish_writing(self) -> None:
        self._watch()
        if self._unsent:
            return
        if self.is_closing:
            self._end()
        elif self._eof_wanted:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:  # the peer is gone
                self.abort()
            else:
                if self._at_eof:
                    self._end()

    def _fail(self) -> None:
        _LOG.exception("a connection of the local API failed and is closed")
        self.abort()
