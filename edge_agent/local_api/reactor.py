"""One thread, many sockets: readiness in, callbacks out. An event loop as small as the local API needs.

Invariants:
- every callback runs on the thread of `run`, one at a time; only `call_soon_threadsafe` may be called elsewhere;
- readiness is a hint: every read, write and accept may find nothing and is a normal return, so an event that
  was meant for a socket that is closed by now harms nobody;
- a failing callback ends its own connection, never the loop;
- without descriptors for a new connection, accepting pauses for a moment; the open connections go on.

Why not asyncio, and what it cost: docs/decisions/0006-http-stack.md.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edge_agent.local_api.transport import READ, Handler, Transport

MAX_EVENTS = 64
"""Sockets served in one turn, before timers and calls from other threads get theirs."""
MAX_ACCEPTS = 16
"""Connections accepted from one listener in one turn."""
ACCEPT_PAUSE_S = 0.25
_COMPLAIN_S = 60.0

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_LOG = logging.getLogger(__name__)


class Reactor:
    """The loop. Made on any thread; `run` makes the thread that calls it the loop's thread."""

    def __init__(self) -> None:
        self.turn = 0
        """Counts the rounds of events: two callbacks that see the same number run in the same round."""
        self.crowd = 0
        """How many sockets are ready in this round."""
        self._poll, self._poller = _new_poller()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._transports: set[Transport] = set()
        self._listeners: dict[int, tuple[socket.socket, Callable[[], Handler]]] = {}
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._asleep = False
        self._stopping = False
        self._complained_at = -float("inf")
        self._waker, self._wakes = socket.socketpair()
        for end in (self._waker, self._wakes):
            end.setblocking(False)
        self.watch(self._wakes.fileno(), READ, self._woken)

    @staticmethod
    def time() -> float:
        """The loop's clock, in seconds."""
        return time.monotonic()

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run `callback` at the end of this round. On the loop's thread."""
        self._soon.append((callback, arguments))

    def call_soon_threadsafe(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Have the loop's thread run `callback`. From any thread; after the end it is a call for nobody."""
        self._soon.append((callback, arguments))
        # the loop says that it goes to sleep before it looks at the calls a last time, so either it sees this
        # call or we see it asleep; one wake-up serves all calls until it slept again
        if self._asleep:
            self._asleep = False
            with suppress(OSError):  # full: it wakes anyway; closed: nobody is left to wake
                self._waker.send(b"\0")

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Run `callback` once, `delay_s` from now. On the loop's thread, or before `run`."""
        heapq.heappush(self._timers, (self.time() + delay_s, next(self._numbers), callback))

    def listen(self, listener: socket.socket, factory: Callable[[], Handler]) -> None:
        """Accept connections from a listening socket, which is the reactor's from now on, each for a new handler."""
        listener.setblocking(False)
        self._listeners[listener.fileno()] = (listener, factory)
        self.watch(listener.fileno(), READ, lambda _: self._accept(listener, factory))

    def stop_listening(self) -> None:
        """Close the listeners; the open connections go on."""
        for number, (listener, _) in self._listeners.items():
            self.unwatch(number)
            listener.close()
        self._listeners.clear()

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._close()

    def stop(self) -> None:
        """End `run` after this round. On the loop's thread."""
        self._stopping = True

    # What transports and listeners call.

    def watch(self, number: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready` whenever one of `events` holds for the descriptor."""
        self._ready[number] = ready
        self._poller.register(number, events)

    def rewatch(self, number: int, events: int) -> None:
        """Change which events a watched descriptor is watched for."""
        self._poller.modify(number, events)

    def unwatch(self, number: int) -> None:
        """Watch it no more."""
        if self._ready.pop(number, None) is not None:
            self._poller.unregister(number)

    def forget(self, transport: Transport) -> None:
        """A transport has ended."""
        self._transports.discard(transport)

    # The loop.

    def _turn(self) -> None:
        self.turn += 1
        self._asleep = True
        events = self._poll(self._sleep_s())
        self._asleep = False
        self.crowd = len(events)
        for number, came in events:
            # a callback of this round may have closed a later one's descriptor
            if (ready := self._ready.get(number)) is not None:
                _guarded(ready, came)
        if self._timers and self._timers[0][0] <= self.time():
            _guarded(heapq.heappop(self._timers)[2])
        for _ in range(len(self._soon)):
            callback, arguments = self._soon.popleft()
            _guarded(callback, *arguments)

    def _sleep_s(self) -> float:
        if self._soon or self._stopping:
            return 0.0
        return max(0.0, self._timers[0][0] - self.time()) if self._timers else -1.0

    def _woken(self, _: int) -> None:
        with suppress(BlockingIOError):
            self._wakes.recv(4096)

    def _accept(self, listener: socket.socket, factory: Callable[[], Handler]) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                accepted, _address = listener.accept()
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._pause_accepting(listener, factory, error)
                return  # nobody waits, or whoever did has left
            self._transports.add(Transport(reactor=self, connected=accepted, handler=factory()))

    def _pause_accepting(self, listener: socket.socket, factory: Callable[[], Handler], error: OSError) -> None:
        if self.time() - self._complained_at > _COMPLAIN_S:
            self._complained_at = self.time()
            _LOG.error("new connections must wait: %s", error.strerror)
        number = listener.fileno()
        self.unwatch(number)

        def accept_again() -> None:
            if number in self._listeners:
                self.watch(number, READ, lambda _: self._accept(listener, factory))

        self.call_later(ACCEPT_PAUSE_S, accept_again)

    def _close(self) -> None:
        self.stop_listening()
        for transport in list(self._transports):
            transport.abort()
        while self._soon:
            callback, arguments = self._soon.popleft()
            _guarded(callback, *arguments)
        self._ready.clear()
        if isinstance(self._poller, select.epoll):
            self._poller.close()
        self._waker.close()
        self._wakes.close()


def _guarded(call: Callable[..., None], *arguments: Any) -> None:
    try:
        call(*arguments)
    except Exception:  # noqa: BLE001 - logged with its trace; the loop goes on
        _LOG.exception("a callback of the local API failed")


def _new_poller() -> tuple[Callable[[float], list[tuple[int, int]]], Any]:
    """The poller and a wait on it in seconds, negative for ever."""
    if hasattr(select, "epoll"):
        epoll = select.epoll()
        return lambda timeout_s: epoll.poll(timeout_s, MAX_EVENTS), epoll
    poller = select.poll()
    return lambda timeout_s: poller.poll(None if timeout_s < 0 else timeout_s * 1000), poller
