"""Downloads over a real connection that is cut, lies, floods or stands still."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.control.download import Downloader, DownloadStopped
from edge_agent.errors import ArtifactCorruptError, DownloadError
from tests.agent.control.artifact_server import (
    ArtifactServer,
    Fault,
    cut_after,
    gibberish,
    hang_after,
    no_range,
    short_without_length,
    status,
    unlimited,
    wrong_range,
)
from tests.real_servers.processes import free_port, wait_until

CONTENT = np.random.default_rng(1).bytes(300_000)
DIGEST = "d" * 64


@pytest.fixture
def server() -> Iterator[ArtifactServer]:
    with ArtifactServer(CONTENT) as running:
        yield running


class Waits:
    """A wait that takes no time, and what it was asked for."""

    def __init__(self, stop_when: Callable[[], bool] = lambda: False) -> None:
        self.seconds: list[float] = []
        self._stop_when = stop_when

    def __call__(self, seconds: float) -> bool:
        if seconds:
            self.seconds.append(seconds)
        return self._stop_when()


def downloader(
    url: str, waits: Waits | None = None, *, attempts: int = 5, silence_timeout_s: float = 20.0
) -> Downloader:
    return Downloader(
        base_url=url,
        username="press-7",
        password="secret",
        attempts=attempts,
        backoff_max_s=8.0,
        wait=waits or Waits(),
        silence_timeout_s=silence_timeout_s,
    )


def fetch(server: ArtifactServer, partial: Path, waits: Waits | None = None, *, attempts: int = 5) -> None:
    downloader(server.url, waits, attempts=attempts).fetch(
        DIGEST, partial, max_bytes=len(CONTENT), exact_bytes=len(CONTENT)
    )


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / f"{DIGEST}.partial"


def test_a_file_arrives_whole_for_the_device_that_asked(server: ArtifactServer, partial: Path) -> None:
    fetch(server, partial)

    assert partial.read_bytes() == CONTENT
    basic = base64.b64encode(b"press-7:secret").decode()
    assert server.requests == [(f"/api/v1/artifacts/{DIGEST}", 0, f"Basic {basic}")]


def test_an_address_below_a_path_is_kept(server: ArtifactServer, partial: Path) -> None:
    downloader(f"{server.url}/fleet/").fetch(DIGEST, partial, max_bytes=len(CONTENT))

    assert server.requests[0][0] == f"/fleet/api/v1/artifacts/{DIGEST}"


def test_a_cut_connection_is_resumed_where_it_ended(server: ArtifactServer, partial: Path) -> None:
    server.faults = [cut_after(100_000), cut_after(100_000)]

    fetch(server, partial)

    assert partial.read_bytes() == CONTENT
    assert [first for _, first, _ in server.requests] == [0, 100_000, 200_000]


def test_a_download_goes_on_where_a_crash_ended_it(server: ArtifactServer, partial: Path) -> None:
    partial.write_bytes(CONTENT[:123_456])

    fetch(server, partial)

    assert partial.read_bytes() == CONTENT
    assert [first for _, first, _ in server.requests] == [123_456]


def test_a_finished_download_is_not_asked_for_again(server: ArtifactServer, partial: Path) -> None:
    partial.write_bytes(CONTENT)

    fetch(server, partial)

    assert server.requests == []


def test_a_finished_download_of_unknown_size_is_complete_by_the_servers_word(
    server: ArtifactServer, partial: Path
) -> None:
    partial.write_bytes(CONTENT)

    downloader(server.url).fetch(DIGEST, partial, max_bytes=10**6)

    assert partial.read_bytes() == CONTENT


def test_a_partial_file_longer_than_the_content_begins_again(server: ArtifactServer, partial: Path) -> None:
    partial.write_bytes(CONTENT + b"x")

    downloader(server.url).fetch(DIGEST, partial, max_bytes=10**6)

    assert partial.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "faults",
    [
        [status(500), status(503)],
        [status(404)],
        [status(302)],
        [cut_after(100_000), no_range],
        [cut_after(100_000), wrong_range],
        [cut_after(100_000), status(500), cut_after(0)],
        [gibberish],
        [cut_after(0), cut_after(0), cut_after(0), cut_after(0)],
    ],
    ids=["500s", "404", "redirect", "no range", "wrong range", "cut then 500", "not HTTP", "nothing at all"],
)
def test_a_passing_fault_ends_in_the_whole_file(server: ArtifactServer, partial: Path, faults: list[Fault]) -> None:
    server.faults = list(faults)

    fetch(server, partial)

    assert partial.read_bytes() == CONTENT
    assert server.faults == []


@pytest.mark.parametrize("fault", [status(500), status(401), gibberish, cut_after(0)])
def test_a_lasting_fault_gives_up_after_the_attempts_and_waits_ever_longer_within_the_bound(
    server: ArtifactServer, partial: Path, fault: Fault
) -> None:
    waits = Waits()
    server.faults = [fault] * 100

    with pytest.raises(DownloadError, match="gave up after 9 attempts"):
        fetch(server, partial, waits, attempts=9)

    assert len(server.requests) == 9
    assert len(waits.seconds) == 8
    assert all(0 <= waited <= min(8.0, 2.0**place) for place, waited in enumerate(waits.seconds))


def test_attempts_are_counted_from_the_last_byte_of_progress(server: ArtifactServer, partial: Path) -> None:
    server.faults = [fault for _ in range(10) for fault in (cut_after(10_000), status(500))]

    fetch(server, partial, attempts=3)

    assert partial.read_bytes() == CONTENT


def test_a_server_that_starts_over_each_time_is_not_followed_for_ever(server: ArtifactServer, partial: Path) -> None:
    def over_again(size: int) -> Fault:
        def answer(handler: object, content: bytes, first: int) -> None:
            cut_after(size)(handler, content, 0)  # type: ignore[arg-type]  # a handler, passed on

        return answer

    server.faults = [over_again(size) for _ in range(100) for size in (50_000, 100_000)]

    with pytest.raises(DownloadError, match="gave up after 5 attempts"):
        fetch(server, partial)
    assert len(server.requests) <= 8


def test_more_bytes_than_promised_are_refused_and_not_kept(server: ArtifactServer, partial: Path) -> None:
    server.faults = [unlimited]

    with pytest.raises(ArtifactCorruptError, match="more than"):
        fetch(server, partial)
    assert not partial.exists()


def test_a_file_shorter_than_promised_is_refused_and_not_kept(server: ArtifactServer, partial: Path) -> None:
    server.faults = [short_without_length]

    with pytest.raises(ArtifactCorruptError, match="its manifest promises"):
        fetch(server, partial)
    assert not partial.exists()


def test_a_server_that_stands_still_is_left_and_its_bytes_are_kept(server: ArtifactServer, partial: Path) -> None:
    server.faults = [hang_after(20_000)]

    downloader(server.url, silence_timeout_s=0.3).fetch(
        DIGEST, partial, max_bytes=len(CONTENT), exact_bytes=len(CONTENT)
    )

    assert partial.read_bytes() == CONTENT
    assert [first for _, first, _ in server.requests] == [0, 20_000]


def test_a_server_that_is_away_is_a_download_error(partial: Path) -> None:
    away = downloader(f"http://127.0.0.1:{free_port()}", attempts=2)

    with pytest.raises(DownloadError, match="refused"):
        away.fetch(DIGEST, partial, max_bytes=10)


@pytest.mark.parametrize("url", ["http://" + "a" * 80 + ".example", "http://[::1]:1", "https://127.0.0.1:1"])
def test_an_address_that_leads_nowhere_is_a_download_error(partial: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        downloader(url, attempts=1).fetch(DIGEST, partial, max_bytes=10)


def test_a_newer_desired_stops_a_download_in_the_middle_and_keeps_what_came(
    server: ArtifactServer, partial: Path
) -> None:
    def something_came() -> bool:
        return partial.exists() and partial.stat().st_size > 0

    with pytest.raises(DownloadStopped):
        fetch(server, partial, Waits(stop_when=something_came))

    assert 0 < partial.stat().st_size <= len(CONTENT)
    fetch(server, partial)
    assert partial.read_bytes() == CONTENT


def test_a_stop_during_a_backoff_ends_the_download(server: ArtifactServer, partial: Path) -> None:
    server.faults = [status(500)] * 100

    with pytest.raises(DownloadStopped):
        fetch(server, partial, Waits(stop_when=lambda: bool(server.requests)))
    assert len(server.requests) == 1


def test_an_interrupted_download_ends_at_once_although_its_server_stands_still(
    server: ArtifactServer, partial: Path
) -> None:
    server.faults = [hang_after(20_000)]
    stopping = threading.Event()
    slow = downloader(server.url, Waits(stop_when=stopping.is_set), silence_timeout_s=60.0)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            slow.fetch(DIGEST, partial, max_bytes=len(CONTENT), exact_bytes=len(CONTENT))
        except DownloadStopped as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: partial.exists() and partial.stat().st_size, 10, "some bytes came")
    stopping.set()
    slow.interrupt()
    thread.join(10)

    assert len(ended) == 1


def test_a_file_of_no_bytes_needs_no_request(server: ArtifactServer, partial: Path) -> None:
    downloader(server.url).fetch(DIGEST, partial, max_bytes=0, exact_bytes=0)

    assert partial.read_bytes() == b""
    assert server.requests == []


def test_a_disk_that_cannot_be_written_is_a_download_error(server: ArtifactServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot write"):
        fetch(server, tmp_path / "absent" / "x.partial")
