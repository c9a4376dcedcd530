"""The choice of an execution provider, with providers that start, fail, cheat and take nothing.

No accelerator is needed: `open_model` hands out real models of the CPU in the place of a provider's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edge_agent.errors import ConfigError, ModelLoadError
from edge_agent.runtime.providers import (
    OpenedModel,
    ProviderFallback,
    largest_difference,
    open_on_best,
    probe_inputs,
    provider_order,
)
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import SessionSettings
from tests.agent.runtime import onnx_files

CPU, CUDA, QNN = "CPUExecutionProvider", "CUDAExecutionProvider", "QNNExecutionProvider"
TENSORRT, XNNPACK = "TensorrtExecutionProvider", "XnnpackExecutionProvider"


class Bench:
    """Providers by name: a model that runs in their place, an error, or a model with what they admit to."""

    def __init__(self, path: Path, **behind: Model | Exception | OpenedModel) -> None:
        self.asked: list[SessionSettings] = []
        self._cpu = Model.load(path)
        self._behind = behind

    def __call__(self, settings: SessionSettings) -> OpenedModel:
        self.asked.append(settings)
        name = settings.providers[0]
        if name == CPU:
            return OpenedModel(model=self._cpu, started=(CPU,), operators={})
        behind = self._behind[name]
        if isinstance(behind, Exception):
            raise behind
        if isinstance(behind, OpenedModel):
            return behind
        return OpenedModel(model=behind, started=(name, CPU), operators={name: 1})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return onnx_files.linear(tmp_path / "linear.onnx")


def choose(
    bench: Bench, *order: str, probe: Mapping[str, Any] | None = None
) -> tuple[str, tuple[ProviderFallback, ...]]:
    opened, fallbacks = open_on_best(SessionSettings(), order=(*order, CPU), open_model=bench, probe=probe)
    return opened.started[0], fallbacks


def test_auto_is_every_known_provider_that_is_here_in_a_fixed_order_with_the_cpu_last() -> None:
    here = ["AzureExecutionProvider", CPU, XNNPACK, TENSORRT, CUDA]

    assert provider_order(["auto"], here) == (CUDA, TENSORRT, XNNPACK, CPU)


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["cpu"], (CPU,)),
        (["cuda"], (CUDA, CPU)),
        (["cpu", "cuda"], (CUDA, CPU)),
        (["XnnpackExecutionProvider", "CUDA"], (XNNPACK, CUDA, CPU)),
        (["xnnpack", "auto"], (XNNPACK, CUDA, CPU)),
        (["cuda", "cuda"], (CUDA, CPU)),
    ],
)
def test_the_order_is_the_wanted_one_and_the_cpu_is_always_the_last(wanted: list[str], order: tuple[str, ...]) -> None:
    assert provider_order(wanted, [CPU, XNNPACK, CUDA]) == order


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["gpu"], "'gpu' is unknown: use auto or some of cuda, .* here are: cpu"),
        (["AzureExecutionProvider"], "unknown"),
        (["qnn"], "'qnn' is not in this ONNX Runtime: here are: cpu"),
        (["auto", "CUDAExecutionProvider"], "not in this ONNX Runtime"),
    ],
)
def test_a_provider_that_nobody_has_is_an_error_that_names_what_is_here(wanted: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        provider_order(wanted, ["AzureExecutionProvider", CPU])


def test_this_machines_own_providers_make_an_order() -> None:
    assert provider_order(["auto"], ort.get_available_providers())[-1] == CPU


def test_the_cpu_alone_is_opened_once_and_compared_with_nothing(path: Path) -> None:
    bench = Bench(path)

    assert choose(bench) == (CPU, ())
    assert len(bench.asked) == 1


def test_a_provider_with_the_cpus_answers_is_taken_and_those_behind_it_are_not_tried(path: Path) -> None:
    bench = Bench(path, **{CUDA: Model.load(path), QNN: AssertionError("never")})

    assert choose(bench, CUDA, QNN) == (CUDA, ())
    assert [asked.providers for asked in bench.asked] == [(CPU,), (CUDA, CPU)]


def test_a_provider_with_other_answers_gives_way_and_that_is_told(path: Path, tmp_path: Path) -> None:
    wrong = Model.load(onnx_files.linear(tmp_path / "wrong.onnx", weight=2.1))
    bench = Bench(path, **{CUDA: wrong, QNN: Model.load(path)})

    chosen, fallbacks = choose(bench, CUDA, QNN)

    assert chosen == QNN
    assert [fallback.provider for fallback in fallbacks] == [CUDA]
    assert "differ from the CPU's by 0.05" in fallbacks[0].reason


def test_rounding_of_an_accelerator_is_allowed(path: Path, tmp_path: Path) -> None:
    rounding = Model.load(onnx_files.linear(tmp_path / "rounding.onnx", weight=2.005))

    assert choose(Bench(path, **{CUDA: rounding}), CUDA)[0] == CUDA


def test_the_golden_inputs_are_what_is_compared_on(path: Path, tmp_path: Path) -> None:
    wrong = Model.load(onnx_files.linear(tmp_path / "wrong.onnx", weight=3.0))
    zeros = {"x": np.zeros((1, 3), dtype=np.float32)}

    # on zeros both give zeros: a probe that shows nothing lets a wrong provider pass, and made-up ones do not
    assert choose(Bench(path, **{CUDA: wrong}), CUDA, probe=zeros)[0] == CUDA
    assert choose(Bench(path, **{CUDA: wrong}), CUDA)[0] == CPU


@pytest.mark.parametrize(
    ("behind", "says"),
    [
        (ModelLoadError("the driver is too old"), "the driver is too old"),
        ("not started", "did not start it"),
        ("no operator", "takes no operator"),
        ("fails", "failed while running"),
    ],
)
def test_a_provider_that_cannot_gives_way_to_the_cpu(path: Path, tmp_path: Path, behind: Any, says: str) -> None:
    if behind == "not started":
        behind = OpenedModel(model=Model.load(path), started=(CPU,), operators={CPU: 1})
    elif behind == "no operator":
        behind = OpenedModel(model=Model.load(path), started=(CUDA, CPU), operators={CPU: 3})
    elif behind == "fails":
        # takes any number of rows, but no row is ever within its table
        behind = Model.load(onnx_files.row_of_table(tmp_path / "table.onnx"))
        path = onnx_files.identity(tmp_path / "int.onnx", 7, ["n"])
        bench = Bench(path, **{CUDA: behind})
        chosen, fallbacks = choose(bench, CUDA, probe={"x": np.array([9], dtype=np.int64)})
        assert (chosen, says in fallbacks[0].reason) == (CPU, True)
        return

    chosen, fallbacks = choose(Bench(path, **{CUDA: behind}), CUDA)

    assert chosen == CPU
    assert fallbacks[0].provider == CUDA
    assert says in fallbacks[0].reason


def test_to_insist_is_told_to_the_provider_and_not_to_the_cpu(path: Path) -> None:
    bench = Bench(path, **{CUDA: Model.load(path)})

    open_on_best(SessionSettings(insist=True), order=(CUDA, CPU), open_model=bench)

    assert [asked.insist for asked in bench.asked] == [False, True]


def test_a_failure_on_the_cpu_is_the_callers() -> None:
    def fails(_: SessionSettings) -> OpenedModel:
        raise ModelLoadError("no")

    with pytest.raises(ModelLoadError):
        open_on_best(SessionSettings(), order=(CUDA, CPU), open_model=fails)


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([0.0], [0.0], 0.0),
        ([0.1], [0.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([1.0, 2.0], [1.0], np.inf),
    ],
)
def test_differences_are_shares_of_the_largest_value_and_nan_is_only_nan(
    got: list[float], want: list[float], difference: float
) -> None:
    found = largest_difference({"y": np.array(got)}, {"y": np.array(want)})

    assert found == pytest.approx(difference) if np.isfinite(difference) else not found <= 1e9


def test_a_missing_output_another_type_and_other_labels_are_no_match() -> None:
    want = {"label": np.array([1, 2])}

    assert largest_difference({}, want) == np.inf
    assert largest_difference({"label": np.array([1.0, 2.0])}, want) == np.inf
    assert largest_difference({"label": np.array([1, 3])}, want) == np.inf
    assert largest_difference({"label": np.array([1, 2])}, want) == 0.0


def test_text_inputs_are_probed_with_empty_text(tmp_path: Path) -> None:
    model = Model.load(onnx_files.identity(tmp_path / "text.onnx", 8, ["n"]))

    assert model.run(probe_inputs(model.inputs))["y"].tolist() == [""]


def test_what_runs_where_is_audited_where_a_provider_was_asked_for(path: Path) -> None:
    with pytest.warns(UserWarning, match="CUDA"):
        model = Model.load(path, settings=SessionSettings(providers=(CUDA, CPU)))

    assert model.providers == (CPU,)
    assert model.operators_by_provider() == {CPU: 1}
    assert Model.load(path).operators_by_provider() == {}
