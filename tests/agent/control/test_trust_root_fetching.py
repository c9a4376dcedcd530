"""How a device comes by newer trust roots: asked for when wanted, bounded, and worth what their signatures are."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.control.root_fetching import MAX_STEPS, TrustKeeper, fetch_root
from edge_agent.control.trust import KnownTime, RootChain, Trust
from edge_agent.errors import DesiredRefusedError, DownloadError
from fleet_protocol.messages import Desired
from fleet_protocol.root import MAX_ROOT_BYTES
from tests.agent.control.roots import NEW_DIRECTOR, NOW_NS, STRANGER, desired, pin, signed, signed_root
from tests.real_servers.processes import wait_until

WAIT_S = 10.0
_OK = b"HTTP/1.1 200 OK\r\n"


class Device:
    """A trust keeper over a chain, with the rest of the device and the server in memory."""

    def __init__(self, folder: Path, *, min_pause_s: float = 0.0) -> None:
        self.chain = RootChain(folder / "roots", pinned=pin(folder, signed_root(1)), fleet="f")
        known = KnownTime(clock_ns=lambda: self.now_ns, uptime_ns=lambda: 0)
        self.trust = Trust(fleet="f", device="d", director=None, chain=self.chain, known_time=known)
        self.now_ns = NOW_NS
        self.served: dict[int, bytes] = {}
        self.asked: list[int] = []
        self.is_away = False
        self.accepted: Desired | None = None
        self.refused = 0
        self.changes = 0
        self.keeper = TrustKeeper(
            self.trust,
            fetch=self._fetch,
            deliver=self._deliver,
            in_force=lambda: self.accepted,
            on_change=self._changed,
            min_pause_s=min_pause_s,
            look_s=0.05,
        )

    def __enter__(self) -> Device:
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.stop()

    def _fetch(self, version: int) -> bytes | None:
        self.asked.append(version)
        if self.is_away:
            raise DownloadError("the server is away")
        return self.served.get(version)

    def _deliver(self, envelope: bytes) -> None:
        try:
            self.accepted = self.trust.verify(envelope)
        except DesiredRefusedError:
            self.refused += 1

    def _changed(self) -> None:
        self.changes += 1


def test_a_root_that_the_server_names_is_fetched_step_by_step(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        device.served = {version: signed_root(version) for version in range(2, 5)}
        device.keeper.offer(signed(desired(root_version=4)))
        wait_until(lambda: device.chain.newest.version == 4, WAIT_S, "the chain reached root 4")
        wait_until(lambda: device.keeper.held_back() == "", WAIT_S, "nothing holds back")
    assert device.asked[:3] == [2, 3, 4]
    assert device.accepted == desired(root_version=4)


def test_a_director_that_the_device_does_not_know_yet_is_heard_after_the_root_that_names_it(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        device.served = {2: signed_root(2, director=NEW_DIRECTOR)}
        device.keeper.offer(signed(desired(3, root_version=2), NEW_DIRECTOR))
        wait_until(lambda: device.accepted is not None, WAIT_S, "the new director's word was accepted")
    assert (device.accepted, device.refused) == (desired(3, root_version=2), 0)


def test_a_new_director_is_heard_also_when_the_server_was_away_at_first(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        device.is_away = True
        device.served = {2: signed_root(2, director=NEW_DIRECTOR)}
        device.keeper.offer(signed(desired(3, root_version=2), NEW_DIRECTOR))
        wait_until(lambda: len(device.asked) > 1, WAIT_S, "it asked again")
        device.is_away = False
        wait_until(lambda: device.accepted is not None, WAIT_S, "the new director's word was accepted")
    assert device.refused == 0


def test_a_forged_desired_state_makes_it_ask_at_most_once_in_a_while(tmp_path: Path) -> None:
    with Device(tmp_path, min_pause_s=60.0) as device:
        for generation in range(1, 50):
            device.keeper.offer(signed(desired(generation), STRANGER))
        wait_until(lambda: device.refused > 0, WAIT_S, "the forged one was refused")
    assert len(device.asked) == 1


@pytest.mark.parametrize("forged", [b"", b"x" * 10_000, signed_root(3), signed_root(2, fleet="g"), signed_root(1)])
def test_a_forged_root_changes_nothing_and_holds_back_what_named_it(tmp_path: Path, forged: bytes) -> None:
    with Device(tmp_path) as device:
        device.served = {2: forged}
        device.keeper.offer(signed(desired(root_version=2)))
        wait_until(lambda: len(device.asked) > 1, WAIT_S, "it asked again")
        assert "trust root 2 is not here yet" in device.keeper.held_back()
    assert device.chain.newest.version == 1


def test_an_endless_chain_is_walked_in_bounded_steps(tmp_path: Path) -> None:
    device = Device(tmp_path, min_pause_s=60.0)
    device.served = {version: signed_root(version) for version in range(2, 2 * MAX_STEPS)}
    with device:
        device.keeper.offer(signed(desired(root_version=2 * MAX_STEPS)))
        wait_until(lambda: device.chain.newest.version > MAX_STEPS, WAIT_S, "one walk ended")
    assert len(device.asked) == MAX_STEPS


def test_that_the_newest_word_became_stale_is_told_without_anybody_asking(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        device.keeper.offer(signed(desired()))
        assert device.keeper.held_back() == ""
        before = device.changes
        device.now_ns = desired().expires_ns
        wait_until(lambda: device.changes > before, WAIT_S, "the change was told")
        assert "expired" in device.keeper.held_back()


def _drip(connection: socket.socket) -> None:
    connection.sendall(_OK + b"Content-Length: 1000\r\n\r\n")
    _send_slowly(connection)


def _drip_headers(connection: socket.socket) -> None:
    connection.sendall(_OK + b"X: ")
    _send_slowly(connection)


def _send_slowly(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"a")
        time.sleep(0.02)  # the attack itself: a byte now and then


def _endless(connection: socket.socket) -> None:
    connection.sendall(_OK + b"\r\n")
    for _ in range(1000):
        connection.sendall(b"a" * MAX_ROOT_BYTES)


def _cut_off(connection: socket.socket) -> None:
    connection.sendall(_OK + b"Content-Length: 1000\r\n\r\nabc")


def _failing(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    def serve() -> None:
        try:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                answer(connection)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(_drip, "did not come within", id="slow retrieval"),
        pytest.param(_drip_headers, "did not come within", id="slow retrieval in the headers"),
        pytest.param(_endless, "larger than any root", id="endless data"),
        pytest.param(_cut_off, "ended early", id="cut off"),
        pytest.param(_failing, "the server answered 500", id="a failing server"),
    ],
)
def test_a_server_that_does_not_give_a_root_is_left_in_time(answer: Callable[[socket.socket], None], says: str) -> None:
    with serving(answer) as url:
        started = time.monotonic()
        with pytest.raises(DownloadError, match=says):
            fetch_root(url, 2, timeout_s=0.3)
        assert time.monotonic() - started < WAIT_S / 2


def test_a_root_that_the_server_does_not_have_is_none() -> None:
    with serving(lambda connection: connection.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")) as url:
        assert fetch_root(url, 2) is None


def test_a_server_that_is_away_is_a_download_error() -> None:
    with pytest.raises(DownloadError, match="trust root 2"):
        fetch_root("http://127.0.0.1:1", 2)
