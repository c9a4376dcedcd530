"""The event loop under real sockets: order, slow readers, failing handlers, no descriptors left, its end."""

from __future__ import annotations

import errno
import logging
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_agent.local_api import reactor as reactor_module
from edge_agent.local_api.reactor import Reactor
from edge_agent.local_api.transport import HIGH_WATER_BYTES, Transport
from tests.agent.local_api.small_service import DEADLINE_S, wait_until


class Recorded:
    """A handler that notes what it is told, and answers as its test wants."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.received = b""
        self.keeps_half_open = False
        self.fails_on = b""
        self.echoes = True
        self.is_paused = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.told.append("made")

    def connection_lost(self) -> None:
        self.told.append("lost")

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.fails_on and self.fails_on in data:
            raise ValueError("on purpose")
        if self.echoes:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.keeps_half_open

    def pause_writing(self) -> None:
        self.is_paused = True
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.is_paused = False
        self.told.append("resume")


class Served:
    """A reactor on a thread of its own, with the handlers of all its connections."""

    def __init__(self, listener: socket.socket) -> None:
        self.address = listener.getsockname()
        self.family = listener.family
        self.handlers: list[Recorded] = []
        self.reactor = Reactor()
        self.reactor.listen(listener, self._new)
        self.thread = threading.Thread(target=self.reactor.run)
        self.thread.start()

    def _new(self) -> Recorded:
        self.handlers.append(Recorded())
        return self.handlers[-1]

    def client(self) -> socket.socket:
        client = socket.socket(self.family, socket.SOCK_STREAM)
        client.settimeout(DEADLINE_S)
        client.connect(self.address)
        return client

    def connected(self) -> tuple[socket.socket, Recorded]:
        """A client and the handler of its connection."""
        before = len(self.handlers)
        client = self.client()
        wait_until(lambda: len(self.handlers) > before and "made" in self.handlers[-1].told)
        return client, self.handlers[-1]

    def stop(self) -> None:
        self.reactor.call_soon_threadsafe(self.reactor.stop)
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


@pytest.fixture(params=["IPv4", "IPv6", "Unix"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    if request.param == "Unix":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(tmp_path / "reactor.sock"))
        listener.listen()
    elif request.param == "IPv6":
        try:
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
    else:
        listener = socket.create_server(("127.0.0.1", 0))
    running = Served(listener)
    yield running
    running.stop()


@pytest.fixture
def tcp() -> Iterator[Served]:
    running = Served(socket.create_server(("127.0.0.1", 0)))
    yield running
    running.stop()


def receive(client: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = client.recv(65_536)
        assert part, f"closed after {len(content)} of {size} bytes"
        content += part
    return content


def test_what_is_written_arrives_whole_and_in_order_however_it_is_cut(served: Served) -> None:
    chance = random.Random(3)
    client, _ = served.connected()
    for _ in range(50):
        sent = chance.randbytes(chance.randrange(1, 30_000))
        client.sendall(sent)
        assert receive(client, len(sent)) == sent
    client.close()


def test_a_slow_reader_pauses_its_handler_and_loses_nothing(served: Served) -> None:
    client, handler = served.connected()
    content = random.Random(4).randbytes(16 * 1024 * 1024)
    served.reactor.call_soon_threadsafe(handler.transport.write, content)
    wait_until(lambda: handler.is_paused)

    assert receive(client, len(content)) == content
    wait_until(lambda: not handler.is_paused)
    assert handler.told == ["made", "pause", "resume"]
    client.close()


def test_what_is_left_is_sent_before_a_closing_transport_ends(served: Served) -> None:
    client, handler = served.connected()
    content = random.Random(5).randbytes(8 * HIGH_WATER_BYTES)

    def write_and_close() -> None:
        handler.transport.write(content)
        handler.transport.close()
        handler.transport.write(b"too late")

    served.reactor.call_soon_threadsafe(write_and_close)

    assert receive(client, len(content)) == content
    assert client.recv(1) == b""
    wait_until(lambda: handler.told[-1] == "lost")
    client.close()


def test_a_half_closed_connection_is_answered_when_its_handler_wants_to(served: Served) -> None:
    client, handler = served.connected()
    handler.keeps_half_open = True
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: "eof" in handler.told)
    served.reactor.call_soon_threadsafe(handler.transport.write, b"answer")
    served.reactor.call_soon_threadsafe(handler.transport.write_eof)

    assert receive(client, 6) == b"answer"
    assert client.recv(1) == b""
    wait_until(lambda: handler.told[-1] == "lost")  # nothing is left in either direction
    assert handler.told.count("eof") == 1
    client.close()


def test_a_handler_hears_of_its_end_once_however_it_comes(served: Served) -> None:
    ends = [
        lambda _client, handler: handler.transport.close(),
        lambda _client, handler: handler.transport.abort(),
        lambda _client, handler: (handler.transport.close(), handler.transport.abort()),
        lambda client, _handler: client.close(),
    ]
    for end in ends:
        client, handler = served.connected()
        served.reactor.call_soon_threadsafe(end, client, handler)
        wait_until(lambda handler=handler: "lost" in handler.told)  # type: ignore[misc]  # bound per turn
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()
        other, _ = served.connected()
        other.sendall(b"x")
        assert receive(other, 1) == b"x"
        other.close()

    assert [handler.told.count("lost") for handler in served.handlers[::2]] == [1, 1, 1, 1]


def test_while_reading_is_paused_nothing_is_read_and_a_vanished_client_costs_no_time(served: Served) -> None:
    client, handler = served.connected()
    done = threading.Event()

    def pause() -> None:
        handler.transport.pause_reading()
        done.set()

    served.reactor.call_soon_threadsafe(pause)
    assert done.wait(DEADLINE_S)
    client.sendall(b"waits")
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    other, _ = served.connected()
    turns = served.reactor.turn
    for _ in range(100):
        other.sendall(b"x")
        receive(other, 1)

    assert served.reactor.turn - turns < 120  # a hang-up, or room to write, that is told in every turn would spin
    assert handler.received == b""
    served.reactor.call_soon_threadsafe(handler.transport.resume_reading)
    wait_until(lambda: handler.told[-1] == "lost")
    other.close()


def test_a_handler_that_fails_ends_its_own_connection_only(tcp: Served, caplog: pytest.LogCaptureFixture) -> None:
    good, _ = tcp.connected()
    bad, handler = tcp.connected()
    handler.fails_on = b"bang"
    with caplog.at_level(logging.CRITICAL + 1):
        bad.sendall(b"bang")

        assert bad.recv(1) == b""
    good.sendall(b"still here")
    assert receive(good, 10) == b"still here"
    assert handler.told[-1] == "lost"
    for client in (good, bad):
        client.close()


def test_a_call_from_another_thread_wakes_a_sleeping_loop_and_none_is_lost(tcp: Served) -> None:
    calls: list[int] = []

    def call_often() -> None:
        for _ in range(2_000):
            tcp.reactor.call_soon_threadsafe(calls.append, 1)

    callers = [threading.Thread(target=call_often) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    wait_until(lambda: len(calls) == 8_000)
    for number in range(200):  # one at a time, so that the loop sleeps between them
        tcp.reactor.call_soon_threadsafe(calls.append, number)
        wait_until(lambda number=number: len(calls) == 8_001 + number)  # type: ignore[misc]  # bound per turn


def test_a_failing_call_or_timer_does_not_end_the_loop(tcp: Served, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    with caplog.at_level(logging.CRITICAL + 1):
        tcp.reactor.call_soon_threadsafe(fail)
        tcp.reactor.call_soon_threadsafe(tcp.reactor.call_later, 0.0, fail)
        client, _ = tcp.connected()
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
    client.close()


def test_timers_run_in_the_order_of_their_times(tcp: Served) -> None:
    ran: list[str] = []

    def plan() -> None:
        tcp.reactor.call_later(0.05, lambda: ran.append("later"))
        tcp.reactor.call_later(0.0, lambda: ran.append("now"))
        tcp.reactor.call_later(0.02, lambda: ran.append("soon"))

    tcp.reactor.call_soon_threadsafe(plan)
    wait_until(lambda: len(ran) == 3)

    assert ran == ["now", "soon", "later"]


class Exhausted(socket.socket):
    """A listener whose process has no descriptors left, for a while."""

    refusals = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_descriptors_new_clients_wait_and_open_connections_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reactor_module, "ACCEPT_PAUSE_S", 0.02)
    listener = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    tcp = Served(listener)
    try:
        first, _ = tcp.connected()
        listener.refusals = 5
        with tcp.client() as late:
            late.sendall(b"late")
            wait_until(lambda: listener.refusals < 5)
            first.sendall(b"first")
            assert receive(first, 5) == b"first"
            assert receive(late, 4) == b"late"
        assert len([record for record in caplog.records if "new connections must wait" in record.message]) == 1
        first.close()
    finally:
        tcp.stop()


def test_the_end_closes_every_connection_and_tells_its_handler() -> None:
    tcp = Served(socket.create_server(("127.0.0.1", 0)))
    clients = [tcp.connected() for _ in range(3)]
    tcp.stop()

    assert [handler.told[-1] for _, handler in clients] == ["lost"] * 3
    for client, _ in clients:
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
    with pytest.raises(ConnectionRefusedError):
        tcp.client()
    tcp.reactor.call_soon_threadsafe(print, "nobody is left to run this")
