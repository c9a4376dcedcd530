"""Compressed bodies: what they hold, how far they may grow, and when answers are compressed."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import InvalidInputError
from edge_agent.local_api import compression
from edge_agent.local_api.compression import MAX_MEMBERS, MIN_COMPRESSED_BYTES
from edge_agent.local_api.routes import Request, Response, respond
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files

BODY = json.dumps({"model": "linear", "inputs": {"x": [[1, 2, 3]]}}).encode()
LIMIT = 100_000


def post(service: SmallService, body: bytes, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return respond(Request(method="POST", path="/predict", body=body, headers=named), service, max_body_bytes=LIMIT)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
)
def test_a_compressed_body_is_what_it_was(service: SmallService, coding: str, body: bytes) -> None:
    response = post(service, body, content_encoding=coding)

    assert json.loads(response.body)["outputs"] == {"scores": [[0.0, 12.0]]}


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY)[:-1]),
        ("gzip", gzip.compress(BODY) + b"x"),
        ("gzip", zlib.compress(BODY)),
        ("deflate", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY) + b"x"),
        ("deflate", zlib.compress(BODY)[:-1]),
        ("deflate", zlib.compress(BODY[:9]) + zlib.compress(BODY[9:])),
    ],
)
def test_a_damaged_body_is_refused(service: SmallService, coding: str, body: bytes) -> None:
    assert post(service, body, content_encoding=coding).status == 400


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip;q=1"])
def test_an_unknown_coding_is_refused(service: SmallService, coding: str) -> None:
    assert post(service, b"x", content_encoding=coding).status == 415


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_expands(service: SmallService, coding: str) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress
    bomb = compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        response = post(service, bomb, content_encoding=coding)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert response.status == 413
    assert peak_bytes < 10 * LIMIT


def test_the_limit_itself_is_allowed_and_members_share_it() -> None:
    assert compression.expand(gzip.compress(b"x" * 10), "gzip", max_bytes=10) == b"x" * 10
    assert compression.expand(gzip.compress(b"x" * 11), "gzip", max_bytes=10) is None
    assert compression.expand(gzip.compress(b"x" * 6) * 2, "gzip", max_bytes=11) is None


def test_the_members_of_a_body_have_a_limit() -> None:
    member = gzip.compress(b"x")

    assert compression.expand(member * MAX_MEMBERS, "gzip", max_bytes=1000) == b"x" * MAX_MEMBERS
    with pytest.raises(InvalidInputError, match=str(MAX_MEMBERS)):
        compression.expand(member * (MAX_MEMBERS + 1), "gzip", max_bytes=1000)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_here_expands_here(content: bytes, coding: str) -> None:
    assert compression.expand(compression.compress(content, coding), coding, max_bytes=200) == content


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_a_body_or_an_error(content: bytes, coding: str) -> None:
    try:
        body = compression.expand(content, coding, max_bytes=1000)
    except InvalidInputError:
        return
    assert body is None or len(body) <= 1000


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0.000, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("br", None),
        ("identity", None),
        ("", None),
    ],
)
def test_the_caller_chooses_the_coding(asked: str, chosen: str | None) -> None:
    assert compression.choose(asked) == chosen


@pytest.mark.parametrize("classes", [10, 4000])
def test_only_a_large_answer_is_compressed(tmp_path: Path, classes: int) -> None:
    service = SmallService({"linear": onnx_files.linear(tmp_path / "m.onnx", classes=classes)})

    plain = post(service, BODY)
    asked = post(service, BODY, accept_encoding="gzip")
    headers = dict(asked.headers)

    if len(plain.body) < MIN_COMPRESSED_BYTES:
        assert headers == {}
        return
    assert headers == {"Vary": "Accept-Encoding", "Content-Encoding": "gzip"}
    assert len(asked.body) < len(plain.body)
    assert json.loads(gzip.decompress(asked.body))["outputs"] == json.loads(plain.body)["outputs"]
    assert dict(post(service, BODY, accept_encoding="br").headers) == {"Vary": "Accept-Encoding"}
