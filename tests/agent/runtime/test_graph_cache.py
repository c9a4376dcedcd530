"""Optimised graphs on disk: the same answers, never other bytes, never an error, never more than allowed."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import ModelLoadError
from edge_agent.runtime.cpu import cpu_signature
from edge_agent.runtime.graph_cache import GraphCache, OpenedSession, cache_key
from edge_agent.runtime.model_file import model_digest
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import Int8Kernels, Optimisation, SessionSettings
from tests.agent.runtime import onnx_files, quantized_files

ALWAYS = 1e9
"""A share of time that any kept graph loads in."""


def digest_of(path: Path) -> str:
    digest = model_digest(path)
    assert digest is not None
    return digest


def opened(folder: Path, path: Path, *, share: float = ALWAYS, **changed: object) -> OpenedSession:
    wanted = msgspec.structs.replace(SessionSettings(), **changed)
    return GraphCache(folder=folder, largest_share=share).open(path, settings=wanted, digest=digest_of(path))


def key_of(path: Path) -> str:
    return cache_key(
        digest=digest_of(path),
        settings=SessionSettings(),
        signature=cpu_signature(),
        runtime_version=ort.get_version_string(),
    )


def answer(session: OpenedSession, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = session.session.run(None, {session.session.get_inputs()[0].name: x})[0]
    return result


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx")) if folder.exists() else []


@pytest.mark.parametrize(
    ("name", "shape"), [("kws", (49, 10, 1)), ("ic", (32, 32, 3)), ("vww", (96, 96, 3)), ("ad", (640,))]
)
def test_the_real_models_answer_the_same_from_the_cache(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = onnx_files.mlperf_tiny(f"{name}.onnx")
    x = np.random.default_rng(1).random((3, *shape)).astype(np.float32)
    expected = Model.load(path).run({"input_1": x})["Identity"]

    first, second = opened(tmp_path, path), opened(tmp_path, path)

    assert second.from_cache
    np.testing.assert_allclose(answer(first, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answer(second, x), answer(first, x))


@pytest.mark.parametrize("kernels", list(Int8Kernels))
def test_a_quantized_model_answers_the_same_from_the_cache(tmp_path: Path, kernels: Int8Kernels) -> None:
    path = quantized_files.qdq_convolution(tmp_path / "conv.onnx")
    x = np.random.default_rng(2).random((2, 16, 8, 8)).astype(np.float32)
    plain = Model.load(path, settings=SessionSettings(int8_kernels=kernels))

    opened(tmp_path / "cache", path, int8_kernels=kernels)
    again = opened(tmp_path / "cache", path, int8_kernels=kernels)

    assert again.from_cache
    assert again.settings == plain.settings
    np.testing.assert_array_equal(answer(again, x), plain.run({"x": x})["y"])


def test_other_kernels_another_level_and_another_model_never_meet(tmp_path: Path) -> None:
    path = quantized_files.qdq_convolution(tmp_path / "conv.onnx")
    opened(tmp_path / "cache", path)

    opened(tmp_path / "cache", path, int8_kernels=Int8Kernels.FLOAT)
    opened(tmp_path / "cache", path, optimisation=Optimisation.BASIC)
    opened(tmp_path / "cache", quantized_files.qdq_convolution(tmp_path / "other.onnx", seed=4))

    assert len(kept_files(tmp_path / "cache")) == 4


def test_threads_and_memory_settings_share_one_graph(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    opened(tmp_path / "cache", path)

    again = opened(tmp_path / "cache", path, threads=2, arena=False)

    assert again.from_cache
    assert (again.settings.threads, again.settings.arena) == (2, False)
    assert again.session.get_session_options().intra_op_num_threads == 2


def test_a_graph_from_the_cache_is_not_rewritten_again(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    opened(tmp_path / "cache", path)

    options = opened(tmp_path / "cache", path).session.get_session_options()

    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"


def test_a_key_names_all_that_the_graph_depends_on() -> None:
    base = {"digest": "d", "signature": "s", "runtime_version": "1", "settings": SessionSettings()}
    others: list[dict[str, object]] = [
        {"digest": "e"},
        {"signature": "t"},
        {"runtime_version": "2"},
        {"settings": SessionSettings(int8_kernels=Int8Kernels.U8U8)},
    ]

    keys = {cache_key(**{**base, **other}) for other in ({}, *others)}  # type: ignore[arg-type]

    assert len(keys) == 5


def test_a_graph_of_another_model_under_this_ones_name_is_not_run(tmp_path: Path) -> None:
    """The attack that matters: valid bytes, of the right form, that are not this model's."""
    mine, other = (onnx_files.linear(tmp_path / f"{weight}.onnx", weight=weight) for weight in (2.0, 7.0))
    opened(tmp_path / "cache", mine)
    (kept,) = kept_files(tmp_path / "cache")
    opened(tmp_path / "other", other)

    shutil.copy(kept_files(tmp_path / "other")[0], kept)
    again = opened(tmp_path / "cache", mine)

    assert answer(again, np.ones((1, 3), np.float32)).tolist() == [[0.0, 6.0]]
    assert opened(tmp_path / "cache", mine).from_cache  # it was made anew


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_happens_to_the_files_the_answer_is_the_models(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    path = onnx_files.linear(folder / "linear.onnx")
    opened(folder / "cache", path)
    for file in sorted((folder / "cache").iterdir()):
        content = file.read_bytes()
        fate = data.draw(st.sampled_from(["keep", "cut", "flip", "empty", "gone", "foreign"]))
        at = data.draw(st.integers(0, len(content) - 1))
        if fate == "gone":
            file.unlink()
        elif fate != "keep":
            flipped = content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :]
            file.write_bytes({"cut": content[:at], "flip": flipped, "empty": b"", "foreign": b"{}"}[fate])

    for _ in range(2):
        assert answer(opened(folder / "cache", path), np.ones((1, 3), np.float32)).tolist() == [[0.0, 6.0]]


def test_a_sound_graph_that_onnx_runtime_refuses_is_deleted_and_the_model_loaded(tmp_path: Path) -> None:
    import hashlib

    path = onnx_files.linear(tmp_path / "linear.onnx")
    opened(tmp_path / "cache", path)
    (kept,) = kept_files(tmp_path / "cache")
    index = kept.with_suffix(".json")
    kept.write_bytes(b"no graph at all")
    entry = msgspec.json.decode(index.read_bytes())
    index.write_bytes(
        msgspec.json.encode({**entry, "sha256": hashlib.sha256(b"no graph at all").hexdigest(), "size_bytes": 15})
    )

    again = opened(tmp_path / "cache", path)

    assert answer(again, np.ones((1, 3), np.float32)).tolist() == [[0.0, 6.0]]
    assert kept.read_bytes() != b"no graph at all"


def test_a_graph_that_loads_no_faster_is_not_kept_and_that_is_remembered(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    first = opened(tmp_path / "cache", path, share=0.0)
    verdicts = [file.read_bytes() for file in (tmp_path / "cache").glob("*.json")]
    second = opened(tmp_path / "cache", path)

    assert not first.from_cache
    assert not second.from_cache
    assert kept_files(tmp_path / "cache") == []
    assert [file.read_bytes() for file in (tmp_path / "cache").glob("*.json")] == verdicts
    assert len(verdicts) == 1


def test_a_model_that_is_slow_to_optimise_is_worth_keeping(tmp_path: Path) -> None:
    path = quantized_files.deep_chain(tmp_path / "deep.onnx")

    first = opened(tmp_path / "cache", path, share=0.9)

    assert first.from_cache
    assert len(kept_files(tmp_path / "cache")) == 1


def test_the_oldest_used_goes_when_the_folder_is_full(tmp_path: Path) -> None:
    paths = [onnx_files.linear(tmp_path / f"{number}.onnx", weight=number, features=500) for number in (1, 2, 3)]
    cache = tmp_path / "cache"
    opened(cache, paths[0])
    size = kept_files(cache)[0].stat().st_size
    small = GraphCache(folder=cache, largest_share=ALWAYS, max_bytes=2 * size + 100)
    small.open(paths[1], settings=SessionSettings(), digest=digest_of(paths[1]))
    for age, index in enumerate(sorted(cache.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(index, (1_000_000 + age, 1_000_000 + age))
    assert opened(cache, paths[0]).from_cache  # used just now, though it is the oldest

    small.open(paths[2], settings=SessionSettings(), digest=digest_of(paths[2]))

    left = [path for path in paths if cache / f"{key_of(path)}.onnx" in kept_files(cache)]
    assert left == [paths[0], paths[2]]


def test_a_graph_larger_than_the_whole_cache_is_not_kept(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx", features=500)

    GraphCache(folder=tmp_path / "cache", largest_share=ALWAYS, max_bytes=100).open(
        path, settings=SessionSettings(), digest=digest_of(path)
    )

    assert kept_files(tmp_path / "cache") == []


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / "0123-77-88.partial"
    left.write_bytes(b"half")
    os.utime(left, (1_000_000, 1_000_000))

    opened(tmp_path / "cache", path)

    assert not left.exists()


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    (tmp_path / "file").write_text("in the way")

    session = opened(tmp_path / "file" / "cache", path)

    assert answer(session, np.ones((1, 3), np.float32)).tolist() == [[0.0, 6.0]]


def test_a_file_that_is_no_model_fails_as_without_a_cache_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")

    with pytest.raises(ModelLoadError, match=r"broken\.onnx is not an ONNX model"):
        opened(tmp_path / "cache", path)

    assert list((tmp_path / "cache").iterdir()) == []


def test_many_threads_may_make_the_same_entry_at_once(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    answers: list[object] = []

    def load() -> None:
        answers.append(answer(opened(tmp_path / "cache", path), np.ones((1, 3), np.float32)).tolist())

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert answers == [[[0.0, 6.0]]] * 6
    assert opened(tmp_path / "cache", path).from_cache
