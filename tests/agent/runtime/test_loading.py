"""From a file to a warm model: what is remembered is used, and nothing that is remembered is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.config import RuntimeSection
from edge_agent.errors import ConfigError, ModelLoadError
from edge_agent.runtime import loading
from edge_agent.runtime.cpu import MachineFacts, machine_facts
from edge_agent.runtime.loading import file_settings, load_model, tune_model
from edge_agent.runtime.model_file import model_digest
from edge_agent.runtime.session_settings import Int8Kernels, SessionSettings
from edge_agent.runtime.tuning import KnownTunings, TuningResult
from tests.agent.runtime import onnx_files, quantized_files

RUNTIME = RuntimeSection()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return quantized_files.deep_chain(tmp_path / "deep.onnx")


def remember(path: Path, cache_dir: Path, settings: SessionSettings, runtime: RuntimeSection = RUNTIME) -> None:
    """Tune the model and put other settings in the place of the found ones."""
    assert tune_model(path, runtime=runtime, cache_dir=cache_dir, budget_s=0.01) is not None
    (file,) = (cache_dir / "tunings").glob("*.tuning.json")
    KnownTunings(folder=cache_dir / "tunings").put(
        file.name.removesuffix(".tuning.json"), TuningResult(settings=settings, table=())
    )


def test_without_a_cache_a_model_is_loaded_and_warm_and_nothing_is_written(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    loaded = load_model(path, runtime=RUNTIME, cache_dir=None)

    assert loaded.model.run({"x": [[1, 2, 3]]})["scores"].tolist() == [[0.0, 12.0]]
    assert loaded.model.is_batchable
    assert (loaded.fallbacks, loaded.is_tuned, loaded.from_cache, loaded.model.digest) == ((), False, False, None)
    assert loaded.load_s > 0
    assert list(tmp_path.iterdir()) == [path]


def test_with_a_cache_the_second_load_skips_the_optimisation(tmp_path: Path, path: Path) -> None:
    x = np.random.default_rng(0).random((2, 8)).astype(np.float32)

    loaded = [load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache") for _ in range(2)]

    assert loaded[1].from_cache
    assert loaded[1].model.digest == model_digest(path)
    np.testing.assert_array_equal(loaded[1].model.run({"x": x})["y"], loaded[0].model.run({"x": x})["y"])
    np.testing.assert_allclose(
        loaded[1].model.run({"x": x})["y"],
        load_model(path, runtime=RUNTIME, cache_dir=None).model.run({"x": x})["y"],
        rtol=1e-4,
    )


def test_a_changed_file_is_never_answered_from_the_cache(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx", weight=2.0)
    for _ in range(2):
        load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")

    onnx_files.linear(path, weight=5.0)
    loaded = load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")

    assert loaded.model.run({"x": [[1, 1, 1]]})["scores"].tolist() == [[0.0, 15.0]]


def test_weights_that_change_in_their_own_file_are_never_answered_from_the_cache(tmp_path: Path) -> None:
    path = quantized_files.with_external_weights(tmp_path / "model.onnx", weight=1.0)
    for _ in range(2):
        load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")
    weights = tmp_path / "weights.bin"

    weights.write_bytes(np.full((64, 64), 2.0, dtype=np.float32).tobytes())
    loaded = load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")

    assert loaded.model.run({"x": np.ones((1, 64))})["y"][0, 0] == 128.0


def test_measured_settings_are_used_from_the_next_load_on(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    remember(path, tmp_path / "cache", SessionSettings(arena=False, mem_pattern=False))

    loaded = load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")

    assert loaded.is_tuned
    assert not loaded.settings.arena
    assert tune_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache") is None  # it is known


def test_measured_settings_are_for_the_config_they_were_measured_with(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")
    remember(path, tmp_path / "cache", SessionSettings(arena=False, mem_pattern=False))

    for other in (replace(RUNTIME, tune=False), replace(RUNTIME, threads=2)):
        assert not load_model(path, runtime=other, cache_dir=tmp_path / "cache").is_tuned


def test_the_config_fixes_the_threads_of_what_is_measured(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    result = tune_model(path, runtime=replace(RUNTIME, threads=2), cache_dir=tmp_path / "cache", budget_s=0.05)

    assert result is not None
    assert {row.settings.threads for row in result.table} == {2}


def test_the_digest_that_a_caller_has_checked_is_not_computed_again(tmp_path: Path, path: Path) -> None:
    loaded = load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache", digest="checked")

    assert loaded.model.digest == "checked"
    assert not (tmp_path / "cache" / "digests.json").exists()


def test_the_kernels_follow_the_machine_and_the_file(tmp_path: Path) -> None:
    old = MachineFacts(signature="x86_64:avx2", quota=2.0, host_cores=2, int8_saturates=True)
    plain, quantized = onnx_files.linear(tmp_path / "a.onnx"), quantized_files.qdq_convolution(tmp_path / "b.onnx")

    kernels = [file_settings(path, runtime=RUNTIME, machine=old)[0].int8_kernels for path in (plain, quantized)]

    assert kernels == [Int8Kernels.NATIVE, Int8Kernels.U8U8]


@pytest.mark.parametrize("name", ["kws.onnx", "ic.onnx", "vww.onnx", "ad.onnx"])
def test_every_real_model_loads_on_a_cpu_without_vnni(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = MachineFacts(signature="x86_64:avx2", quota=2.0, host_cores=2, int8_saturates=True)
    assert old != machine_facts()
    monkeypatch.setattr(loading, "machine_facts", lambda: old)

    for _ in range(2):
        loaded = load_model(onnx_files.mlperf_tiny(name), runtime=RUNTIME, cache_dir=tmp_path)

    assert loaded.settings.int8_kernels is Int8Kernels.NATIVE


def test_a_missing_file_and_a_provider_that_is_not_here_are_told(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    with pytest.raises(ModelLoadError, match="is not there"):
        load_model(tmp_path / "none.onnx", runtime=RUNTIME, cache_dir=tmp_path / "cache")
    with pytest.raises(ConfigError, match="unknown"):
        load_model(path, runtime=replace(RUNTIME, providers=["abacus"]), cache_dir=None)


def test_a_cache_that_vanishes_costs_time_only(tmp_path: Path, path: Path) -> None:
    load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file now")

    assert load_model(path, runtime=RUNTIME, cache_dir=tmp_path / "cache").model.is_batchable
