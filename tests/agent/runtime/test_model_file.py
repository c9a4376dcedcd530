"""Digests of model files, of all that belongs to them, and what their words say."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from edge_agent.runtime.model_file import MAX_KNOWN_FILES, KnownDigests, external_files, model_digest, quantizes
from tests.agent.runtime import onnx_files, quantized_files

_LONG_AGO_NS = 1_700_000_000_000_000_000


def settle(path: Path) -> None:
    """Give a file a modification time long past; its change time stays now."""
    os.utime(path, ns=(_LONG_AGO_NS, _LONG_AGO_NS))


def test_the_digest_of_a_model_in_one_file_is_its_sha256(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    assert model_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert external_files(path) == ()


def test_weights_in_another_file_are_part_of_the_digest(tmp_path: Path) -> None:
    path = quantized_files.with_external_weights(tmp_path / "model.onnx", weight=1.0)
    before = model_digest(path)
    weights = tmp_path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[5] ^= 1

    weights.write_bytes(content)

    assert external_files(path) == ("weights.bin",)
    assert before is not None
    assert model_digest(path) not in (None, before)


def test_a_long_name_of_a_weight_file_is_read_whole(tmp_path: Path) -> None:
    name = "w" * 200 + ".bin"

    path = quantized_files.with_external_weights(tmp_path / "model.onnx", weight=1.0, location=name)

    assert external_files(path) == (name,)


def test_a_word_that_may_name_a_weight_file_or_not_leaves_no_digest(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    path.write_bytes(path.read_bytes() + b"\x7a\x0alocation is")

    assert external_files(path) is None
    assert model_digest(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"location", b"\x0a\x08location", b"\x0a\x08location\x12\xff\xff", b"\x0a\x08location\x12\x03a"]
)
def test_no_file_is_too_broken_to_look_at(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)

    assert external_files(path) == (() if not content else None)
    assert not quantizes(path)


def test_activations_that_are_quantized_are_seen_and_weights_alone_are_not(tmp_path: Path) -> None:
    assert quantizes(quantized_files.qdq_convolution(tmp_path / "qdq.onnx"))
    assert not quantizes(onnx_files.linear(tmp_path / "linear.onnx"))
    assert not quantizes(onnx_files.mlperf_tiny("kws.onnx"))  # has DequantizeLinear for its weights only


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy2(onnx_files.linear(tmp_path / "linear.onnx"), path)
    known = KnownDigests(folder=tmp_path / "cache", settled_ns=0)
    digest = known.of(path)
    memory = (tmp_path / "cache" / "digests.json").read_text()
    assert digest is not None

    (tmp_path / "cache" / "digests.json").write_text(memory.replace(digest, "remembered"))

    assert known.of(path) == "remembered"


def test_a_changed_file_is_read_again_though_its_size_and_time_are_the_same(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "model.onnx", weight=2.0)
    settle(path)
    known = KnownDigests(folder=tmp_path / "cache", settled_ns=0)
    before = known.of(path)
    size = path.stat().st_size

    onnx_files.linear(path, weight=3.0)
    settle(path)

    assert path.stat().st_size == size
    assert known.of(path) == model_digest(path) != before


def test_a_file_written_this_moment_is_not_remembered(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "model.onnx")

    KnownDigests(folder=tmp_path / "cache").of(path)

    assert not (tmp_path / "cache" / "digests.json").exists()


def test_a_file_with_weights_elsewhere_is_not_remembered(tmp_path: Path) -> None:
    path = quantized_files.with_external_weights(tmp_path / "model.onnx", weight=1.0)

    assert KnownDigests(folder=tmp_path / "cache", settled_ns=0).of(path) == model_digest(path)
    assert not (tmp_path / "cache" / "digests.json").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": [1]}', b"\xff"])
def test_a_torn_memory_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = onnx_files.linear(tmp_path / "model.onnx")
    (tmp_path / "digests.json").write_bytes(content)

    assert KnownDigests(folder=tmp_path, settled_ns=0).of(path) == model_digest(path)


def test_memory_is_bounded(tmp_path: Path) -> None:
    known = KnownDigests(folder=tmp_path / "cache", settled_ns=0)
    for number in range(MAX_KNOWN_FILES + 3):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"model")
        known.of(path)

    remembered = (tmp_path / "cache" / "digests.json").read_text()

    assert remembered.count(".onnx") == MAX_KNOWN_FILES
    assert "/2.onnx" not in remembered
    assert f"/{MAX_KNOWN_FILES + 2}.onnx" in remembered
