"""Models that ONNX Runtime really loads and runs, and inputs that it must never see."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edge_agent.errors import ConfigError, InferenceError, InvalidInputError, ModelLoadError
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import TensorSpec
from tests.agent.runtime import onnx_files


@pytest.fixture
def linear(tmp_path: Path) -> Model:
    return Model.load(onnx_files.linear(tmp_path / "linear.onnx"))


def test_a_model_tells_its_signature_with_minus_one_for_a_variable_dimension(linear: Model) -> None:
    assert linear.inputs == (TensorSpec(name="x", datatype="FP32", shape=[-1, 3]),)
    assert linear.outputs == (TensorSpec(name="scores", datatype="FP32", shape=[-1, 2]),)


def test_outputs_come_by_name(linear: Model) -> None:
    outputs = linear.run({"x": np.ones((2, 3), dtype=np.float32)})

    assert list(outputs) == ["scores"]
    np.testing.assert_array_equal(outputs["scores"], [[0, 6], [0, 6]])


def test_the_real_keyword_model_hears_the_word_it_was_recorded_with() -> None:
    model = Model.load(onnx_files.mlperf_tiny("kws.onnx"))
    heard = np.load(onnx_files.mlperf_tiny("kws_inputs.npy"))
    model.warm()

    (scores,) = model.run({"input_1": heard.reshape(1, 49, 10, 1)}).values()

    assert int(scores.argmax()) == 5
    assert scores.max() > 0.9999


def test_the_real_anomaly_model_rebuilds_normal_windows_as_it_was_measured() -> None:
    model = Model.load(onnx_files.mlperf_tiny("ad.onnx"), threads=2)
    windows = np.load(onnx_files.mlperf_tiny("ad_inputs.npy"))

    (rebuilt,) = model.run({"input_1": windows}).values()

    assert float(((rebuilt - windows) ** 2).mean()) == pytest.approx(9.71, abs=0.01)


@pytest.mark.parametrize("name", ["kws.onnx", "ic.onnx", "vww.onnx", "ad.onnx"])
def test_every_real_model_warms_up(name: str) -> None:
    Model.load(onnx_files.mlperf_tiny(name)).warm()


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2, 3]],
        [[1.0, 2.0, 3.0]],
        np.array([[1, 2, 3]], dtype=np.uint8),
        np.array([[1, 2, 3]], dtype=np.float64),
        np.array([[1, 2, 3]], dtype=">f4"),
        np.array([[1, 9, 2, 9, 3, 9]], dtype=np.float32)[:, ::2],
    ],
)
def test_what_means_the_same_is_converted(linear: Model, value: Any) -> None:
    np.testing.assert_array_equal(linear.run({"x": value})["scores"], [[0, 12]])


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "missing x"),
        ({"y": [[1.0] * 3]}, "missing x; unknown y: it takes x"),
        ({"x": [[1.0] * 3], "y": 1}, "unknown y"),
        ({"x": [1.0, 2.0, 3.0]}, "shape [3], the model takes [-1, 3] (-1 is any size): wrap one sample in a list"),
        ({"x": [[1.0] * 4]}, "shape [1, 4], the model takes [-1, 3]"),
        ({"x": np.zeros((1, 4), dtype=np.float32)}, "shape [1, 4]"),
        ({"x": 5}, "shape []"),
        ({"x": [[1.0, 2.0], [3.0]]}, "not a regular array"),
        ({"x": np.zeros((0, 3), dtype=np.float32)}, "holds no values"),
        ({"x": [["a", "b", "c"]]}, "holds text, the model takes FP32"),
        ({"x": [[1.0, None, 3.0]]}, "null, mixed or unreadable"),
        ({"x": [[True, False, True]]}, "holds booleans"),
        ({"x": [[1.0, 2.0, 1e300]]}, "too large for FP32"),
        ({"x": [[1j, 2.0, 3.0]]}, "complex128"),
        ({"x": [[1, 2, 10**30]]}, "null, mixed or unreadable"),
    ],
)
def test_a_wrong_input_is_refused_in_one_line_that_names_it(linear: Model, inputs: Any, told: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        linear.run(inputs)

    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("element", "value", "expected"),
    [
        (TensorProto.UINT8, [0, 255], [0, 255]),
        (TensorProto.INT64, [2**62 + 1, -5], [2**62 + 1, -5]),
        (TensorProto.INT8, [1.0, -2.0], [1, -2]),
        (TensorProto.BOOL, [True, False], [True, False]),
        (TensorProto.FLOAT16, [0.5, 2], [0.5, 2]),
        (TensorProto.DOUBLE, [1e300, 1], [1e300, 1]),
        (TensorProto.STRING, ["grüß", ""], ["grüß", ""]),
        (TensorProto.STRING, np.array(["a", "bc"]), ["a", "bc"]),
    ],
)
def test_every_element_type_goes_in_and_comes_out(tmp_path: Path, element: int, value: Any, expected: Any) -> None:
    model = Model.load(onnx_files.identity(tmp_path / "same.onnx", element, ["n"]))
    model.warm()

    assert model.run({"x": value})["y"].tolist() == expected


@pytest.mark.parametrize(
    ("element", "value"),
    [
        (TensorProto.UINT8, [256, 0]),
        (TensorProto.UINT8, [-1, 0]),
        (TensorProto.INT64, [0.5, 1.0]),
        (TensorProto.INT64, [float("nan"), 1.0]),
        (TensorProto.INT64, [2.0**63, 1.0]),
        (TensorProto.BOOL, [0, 1]),
        (TensorProto.FLOAT16, [70_000, 1]),
        (TensorProto.STRING, [1, 2]),
        (TensorProto.STRING, np.array(["a", None], dtype=object)),
        (TensorProto.STRING, np.array([b"a", b"b"])),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_refused(tmp_path: Path, element: int, value: Any) -> None:
    model = Model.load(onnx_files.identity(tmp_path / "same.onnx", element, ["n"]))

    with pytest.raises(InvalidInputError, match="input 'x' holds"):
        model.run({"x": value})


def test_arrays_that_fit_reach_onnx_runtime_without_a_copy(linear: Model) -> None:
    fitting = {"x": np.ones((1, 3), dtype=np.float32)}

    assert linear.prepare(fitting) is fitting


def test_prepared_inputs_are_not_prepared_again(linear: Model) -> None:
    prepared = linear.prepare({"x": [[1, 2, 3]]})

    assert linear.prepare(prepared) is prepared


def test_a_failure_inside_onnx_runtime_is_an_inference_error_that_names_the_model(tmp_path: Path) -> None:
    model = Model.load(onnx_files.row_of_table(tmp_path / "table.onnx"))

    with pytest.raises(InferenceError, match=r"table\.onnx failed while running") as failed:
        model.run({"x": [7]})

    assert "\n" not in str(failed.value)
    assert model.run({"x": [1]})["y"].tolist() == [20.0]


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none\.onnx is not there"):
        Model.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 50, b"\x00" * 1000])
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelLoadError) as refused:
        Model.load(path)

    assert "broken.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_real_model_is_refused(tmp_path: Path) -> None:
    whole = onnx_files.mlperf_tiny("kws.onnx").read_bytes()
    path = tmp_path / "torn.onnx"
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelLoadError):
        Model.load(path)


def test_an_operator_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    path = onnx_files.save(
        tmp_path / "odd.onnx",
        [helper.make_node("Teleport", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )

    with pytest.raises(ModelLoadError, match="Teleport"):
        Model.load(path)


def test_a_model_that_answers_no_tensor_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = onnx_files.save(
        tmp_path / "sequence.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs=[helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n"])],
    )

    with pytest.raises(ModelLoadError, match="only tensors"):
        Model.load(path)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_senseless_number_of_threads_is_refused(tmp_path: Path, threads: int) -> None:
    with pytest.raises(ConfigError, match="threads"):
        Model.load(onnx_files.linear(tmp_path / "linear.onnx"), threads=threads)


def test_many_threads_run_one_model_at_once_and_each_gets_its_own_answer(linear: Model) -> None:
    def ask(number: int) -> float:
        return float(linear.run({"x": np.full((1, 3), number, dtype=np.float32)})["scores"][0, 1])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(500)))

    assert answers == [6.0 * number for number in range(500)]


def test_a_model_that_nobody_holds_gives_its_session_back(tmp_path: Path) -> None:
    model = Model.load(onnx_files.linear(tmp_path / "linear.onnx"))
    gone = weakref.ref(model._session)

    del model
    gc.collect()

    assert gone() is None
