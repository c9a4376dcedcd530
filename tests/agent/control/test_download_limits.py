"""Downloads that are held back, by us or by the server, and servers that would hold the device."""

from __future__ import annotations

import datetime
import ipaddress
import threading
import time
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.control.download import RETRY_AFTER_MAX_S, Downloader, DownloadStopped, NotServedError
from edge_agent.errors import ArtifactCorruptError, DownloadError
from tests.agent.control.artifact_server import (
    ArtifactServer,
    Fault,
    cut_after,
    drip,
    drip_headers,
    promise,
    status,
    well,
)
from tests.real_servers.processes import wait_until

CONTENT = np.random.default_rng(2).bytes(300_000)
DIGEST = "d" * 64


@pytest.fixture
def server() -> Iterator[ArtifactServer]:
    with ArtifactServer(CONTENT) as running:
        yield running


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / f"{DIGEST}.partial"


class Waits:
    """A wait that takes no time, and what it was asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> bool:
        if seconds:
            self.seconds.append(seconds)
        return False


def downloader(url: str, wait: Any = None, **settings: Any) -> Downloader:
    return Downloader(
        **{
            "base_url": url,
            "username": "press-7",
            "password": "secret",
            "attempts": 3,
            "backoff_max_s": 1.0,
            "wait": wait or Waits(),
            "silence_timeout_s": 20.0,
            **settings,
        }
    )


def whole(one: Downloader, partial: Path) -> None:
    one.fetch(DIGEST, partial, max_bytes=len(CONTENT), exact_bytes=len(CONTENT))


def pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def test_a_capped_download_takes_the_time_that_its_cap_says_also_over_a_cut(
    server: ArtifactServer, partial: Path
) -> None:
    server.faults = [cut_after(150_000)]
    rate = 200_000
    started = time.monotonic()

    whole(downloader(server.url, pause, max_bytes_per_s=rate, backoff_max_s=0.001), partial)

    took_s = time.monotonic() - started
    assert partial.read_bytes() == CONTENT
    assert took_s >= (len(CONTENT) - rate * 0.1) / rate * 0.99
    assert took_s < len(CONTENT) / rate * 2  # a busy machine may be late, never early


def test_a_capped_download_is_interrupted_at_once(server: ArtifactServer, partial: Path) -> None:
    stopping = threading.Event()
    slow = downloader(server.url, stopping.wait, max_bytes_per_s=1024)
    ended: list[float] = []

    def run() -> None:
        try:
            whole(slow, partial)
        except DownloadStopped:
            ended.append(time.monotonic())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: slow.received_bytes > 0, 10, "some bytes came")
    asked_at = time.monotonic()
    stopping.set()
    slow.interrupt()
    thread.join(10)

    assert ended[0] - asked_at < 1.0
    assert slow.received_bytes < 20_000


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_for_time_gets_it(server: ArtifactServer, partial: Path, code: int) -> None:
    waits = Waits()
    server.faults = [status(code, Retry_After="17")]

    whole(downloader(server.url, waits), partial)

    assert len(waits.seconds) == 1
    assert 17.0 <= waits.seconds[0] <= 18.0


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("999999999999", RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S + 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S + 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 1),
        ("-5", 0, 1),
        ("soon", 0, 1),
        ("²", 0, 1),
    ],
)
def test_what_a_server_asks_for_is_bounded_and_nonsense_counts_for_nothing(
    server: ArtifactServer, partial: Path, value: str, least: float, most: float
) -> None:
    waits = Waits()
    server.faults = [status(503, Retry_After=value)]

    whole(downloader(server.url, waits), partial)

    assert all(least <= seconds <= most for seconds in waits.seconds)
    assert len(waits.seconds) == 1


def test_a_date_to_come_back_at_is_kept(server: ArtifactServer, partial: Path) -> None:
    waits = Waits()
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    server.faults = [status(503, Retry_After=format_datetime(at, usegmt=True))]

    whole(downloader(server.url, waits), partial)

    assert 50 <= waits.seconds[0] <= 62


@pytest.mark.parametrize("fault", [drip(0.02), drip_headers(0.02)], ids=["body", "headers"])
def test_a_server_that_drips_is_left_although_it_is_never_silent(
    server: ArtifactServer, partial: Path, fault: Fault
) -> None:
    server.faults = [fault] * 10
    started = time.monotonic()

    with pytest.raises(DownloadError, match="gave up after 2 attempts: the server sent less than"):
        whole(downloader(server.url, attempts=2, silence_timeout_s=0.2), partial)
    assert time.monotonic() - started < 5.0
    assert len(server.requests) == 2


def test_a_file_that_is_longer_than_promised_is_refused_before_it_is_read(
    server: ArtifactServer, partial: Path
) -> None:
    server.faults = [promise(10**12)]
    one = downloader(server.url)

    with pytest.raises(ArtifactCorruptError, match="1000000000000 bytes, more than the 300000 bytes promised"):
        whole(one, partial)
    assert one.received_bytes == 0


def test_a_redirect_is_not_followed_and_is_told(server: ArtifactServer, partial: Path) -> None:
    with ArtifactServer(CONTENT) as elsewhere:
        server.faults = [status(302, Location=f"{elsewhere.url}/x")] * 3

        with pytest.raises(DownloadError, match=r"a redirect to 'http://127.* not followed: set server\.url"):
            whole(downloader(server.url), partial)
        assert elsewhere.requests == []


def test_a_file_that_may_be_gone_is_not_asked_for_again(server: ArtifactServer, partial: Path) -> None:
    server.faults = [status(404)] * 3

    with pytest.raises(NotServedError):
        downloader(server.url).fetch(DIGEST, partial, max_bytes=10, may_be_gone=True)
    assert len(server.requests) == 1


def test_a_question_is_repeated_until_there_is_an_answer_whatever_it_is(server: ArtifactServer) -> None:
    server.faults = [cut_after(0), status(404), well]
    one = downloader(server.url)

    assert one.ask("artifacts/x/deltas/y", max_bytes=10).body == b""
    assert one.ask("artifacts/x/deltas/y", max_bytes=10).status == 404
    assert one.ask("artifacts/x/deltas/y", max_bytes=10).body == CONTENT[:10]


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_kept_to(
    server: ArtifactServer, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:word@"))
    monkeypatch.delenv("no_proxy", raising=False)

    whole(downloader("http://fleet.invalid:8080/f"), partial)

    assert partial.read_bytes() == CONTENT
    assert server.requests[0][0] == f"http://fleet.invalid:8080/f/api/v1/artifacts/{DIGEST}"
    monkeypatch.setenv("no_proxy", "fleet.invalid")
    with pytest.raises(DownloadError):
        downloader("http://fleet.invalid:8080/f", attempts=1).fetch("e" * 64, partial, max_bytes=10**6)
    assert len(server.requests) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleet")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_server_with_a_certificate_of_the_configured_ca_is_believed_and_no_other(
    certificate: Path, partial: Path
) -> None:
    with ArtifactServer(CONTENT, certificate=certificate) as secure:
        with pytest.raises(DownloadError, match="certificate verify failed"):
            whole(downloader(secure.url, attempts=1), partial)
        assert secure.requests == []

        whole(downloader(secure.url, ca_file=certificate), partial)

        assert partial.read_bytes() == CONTENT


def test_a_cut_is_resumed_over_tls_too(certificate: Path, partial: Path) -> None:
    with ArtifactServer(CONTENT, certificate=certificate, faults=[cut_after(100_000)]) as secure:
        whole(downloader(secure.url, ca_file=certificate), partial)

        assert partial.read_bytes() == CONTENT
        assert [first for _, first, _ in secure.requests] == [0, 100_000]
