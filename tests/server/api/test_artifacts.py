"""Upload and resumable download of content-addressed files, over TCP."""

from __future__ import annotations

import hashlib
import socket

import httpx
import pytest

from fleet_server.api.limits import MAX_BODY_BYTES
from tests.real_servers.processes import wait_until
from tests.server.api.running import Server

_CONTENT = bytes(range(256)) * 4096
_DIGEST = hashlib.sha256(_CONTENT).hexdigest()
_PATH = f"/api/v1/artifacts/{_DIGEST}"


@pytest.fixture
def client(server: Server) -> httpx.Client:
    client = server.client("operator")
    assert client.put(_PATH, content=_CONTENT).json() == {"sha256": _DIGEST, "size_bytes": len(_CONTENT)}
    return client


def test_a_file_comes_back_as_it_was_sent(client: httpx.Client) -> None:
    answer = client.get(_PATH)
    assert answer.status_code == 200
    assert answer.content == _CONTENT
    assert answer.headers["etag"] == f'"{_DIGEST}"'
    assert answer.headers["accept-ranges"] == "bytes"
    head = client.head(_PATH)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(_CONTENT))


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=1000-", 1000, len(_CONTENT) - 1),
        ("bytes=-5", len(_CONTENT) - 5, len(_CONTENT) - 1),
        ("bytes=-99999999999", 0, len(_CONTENT) - 1),
        ("bytes=5-99999999999", 5, len(_CONTENT) - 1),
    ],
)
def test_a_range_gives_exactly_its_bytes(client: httpx.Client, header: str, first: int, last: int) -> None:
    answer = client.get(_PATH, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == _CONTENT[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(_CONTENT)}"


@pytest.mark.parametrize("header", [f"bytes={len(_CONTENT)}-", "bytes=99999999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_416_and_tells_the_size(client: httpx.Client, header: str) -> None:
    answer = client.get(_PATH, headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(_CONTENT)}"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("header", ["bytes=9-3", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=", "x" * 500])
def test_a_range_that_is_not_understood_gives_the_whole_file(client: httpx.Client, header: str) -> None:
    answer = client.get(_PATH, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, _CONTENT)


def test_a_download_resumes_only_the_file_it_began(client: httpx.Client) -> None:
    same = client.get(_PATH, headers={"Range": "bytes=10-", "If-Range": f'"{_DIGEST}"'})
    assert (same.status_code, same.content) == (206, _CONTENT[10:])
    for other in ('"other"', f'W/"{_DIGEST}"', "Wed, 21 Oct 2026 07:28:00 GMT"):
        whole = client.get(_PATH, headers={"Range": "bytes=10-", "If-Range": other})
        assert (whole.status_code, whole.content) == (200, _CONTENT)
    assert client.get(_PATH, headers={"If-None-Match": f'"{_DIGEST}"'}).status_code == 304


def test_an_unknown_or_malformed_digest_is_a_problem(client: httpx.Client) -> None:
    assert client.get("/api/v1/artifacts/" + "1" * 64).status_code == 404
    for name in ("..%2f..%2fetc%2fpasswd", "A" * 64, "0" * 63, "%00"):
        answer = client.get(f"/api/v1/artifacts/{name}")
        assert answer.status_code in (400, 404)
        assert answer.headers["content-type"] == "application/problem+json"


def test_bytes_of_another_digest_are_refused_and_not_stored(client: httpx.Client, server: Server) -> None:
    claimed = "2" * 64
    answer = client.put(f"/api/v1/artifacts/{claimed}", content=b"not that")
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:edgefleet:problem:untrusted-bundle"
    assert client.head(f"/api/v1/artifacts/{claimed}").status_code == 404
    assert list((server.folder / "artifacts" / "incoming").iterdir()) == []


def test_an_upload_that_is_cut_off_leaves_nothing(client: httpx.Client, server: Server) -> None:
    content = b"z" * 1_000_000
    digest = hashlib.sha256(content).hexdigest()
    incoming = server.folder / "artifacts" / "incoming"
    port = httpx.URL(server.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = (
            f"PUT /api/v1/artifacts/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
            f"Authorization: Bearer {server.keys['operator']}\r\n\r\n"
        )
        connection.sendall(head.encode() + content[:600_000])
        wait_until(lambda: list(incoming.iterdir()), 10, "the upload to begin")
    wait_until(lambda: not list(incoming.iterdir()), 10, "the upload to be dropped")
    assert client.head(f"/api/v1/artifacts/{digest}").status_code == 404


def test_a_body_above_the_limit_is_refused_whatever_its_headers_claim(server: Server) -> None:
    too_large = b"x" * (MAX_BODY_BYTES + 1)
    with server.client("operator") as client:
        declared = client.post("/api/v1/devices/pi-1/enrol", content=too_large)
        chunked = client.post("/api/v1/devices/pi-1/enrol", content=iter([too_large[:-1], b"xx"]))
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
