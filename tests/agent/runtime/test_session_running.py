"""The two halves of a run, cancelling, and what a model says about sharing runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from onnx import TensorProto, helper

from edge_agent.errors import InferenceError, InvalidInputError
from edge_agent.runtime.row_independence import MAX_SAMPLE_VALUES, rows_are_independent, sample
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import Int8Kernels, SessionSettings
from fleet_protocol.manifest import TensorSpec
from tests.agent.runtime import onnx_files, quantized_files


def warm(path: Path) -> Model:
    model = Model.load(path)
    model.warm()
    return model


def test_preparing_and_executing_is_running(tmp_path: Path) -> None:
    model = Model.load(onnx_files.two_inputs(tmp_path / "two.onnx"))

    arrays = model.prepare({"b": [1.0, 2.0], "a": [10, 20]})

    assert (
        model.execute(arrays)["total"].tolist() == model.run({"a": [10, 20], "b": [1, 2]})["total"].tolist() == [11, 22]
    )


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    path = onnx_files.save(
        tmp_path / "split.onnx",
        [helper.make_node("Identity", ["x"], ["second"]), helper.make_node("Neg", ["x"], ["first"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("first", "second")],
    )

    outputs = Model.load(path).run({"x": [3.0]})

    assert {name: array.tolist() for name, array in outputs.items()} == {"first": [-3.0], "second": [3.0]}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), dtype=np.float64),
        np.zeros((2, 3), dtype=">f4"),
        np.zeros((2, 3), dtype=np.int32),
        np.zeros((2, 3), dtype=np.float32).view(np.matrix),
    ],
)
def test_an_array_that_nearly_fits_is_converted_before_onnx_runtime_sees_it(tmp_path: Path, array: Any) -> None:
    model = Model.load(onnx_files.linear(tmp_path / "linear.onnx"))

    prepared = model.prepare({"x": array})

    assert prepared["x"].dtype is np.dtype(np.float32)
    assert type(prepared["x"]) is np.ndarray


@pytest.mark.parametrize("shape", [(0, 3), (1, 4), (3,), (1, 1, 3), ()])
def test_no_shape_slips_past_the_fast_look(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = Model.load(onnx_files.linear(tmp_path / "linear.onnx"))

    with pytest.raises(InvalidInputError):
        model.prepare({"x": np.zeros(shape, dtype=np.float32)})


@pytest.mark.parametrize(("shape", "fits"), [((2, 3), True), ((1, 3), False), ((2, 4), False)])
def test_a_fixed_first_axis_is_looked_at_too(tmp_path: Path, shape: tuple[int, int], fits: bool) -> None:
    model = Model.load(onnx_files.identity(tmp_path / "fixed.onnx", TensorProto.FLOAT, [2, 3]))
    inputs = {"x": np.zeros(shape, dtype=np.float32)}

    if fits:
        assert model.prepare(inputs) is inputs
    else:
        with pytest.raises(InvalidInputError, match="shape"):
            model.prepare(inputs)


def test_a_session_without_an_inner_one_runs_by_its_public_face(tmp_path: Path) -> None:
    class PublicOnly:
        """What another ONNX Runtime may hand out: a session that is one object."""

        def __init__(self, path: Path) -> None:
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self.get_inputs, self.get_outputs, self.run = session.get_inputs, session.get_outputs, session.run

    path = onnx_files.linear(tmp_path / "linear.onnx")

    model = Model.of_session(PublicOnly(path), path=path, settings=SessionSettings())

    assert model.run({"x": [[1, 2, 3]]})["scores"].tolist() == [[0.0, 12.0]]


def test_a_failure_is_raised_and_not_logged_as_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Model.load(onnx_files.row_of_table(tmp_path / "table.onnx"))

    with pytest.raises(InferenceError):
        model.run({"x": [7]})

    assert capfd.readouterr().err == ""


def test_a_run_is_cancelled_from_another_thread(tmp_path: Path) -> None:
    model = Model.load(quantized_files.slow(tmp_path / "slow.onnx"))
    arrays = model.prepare({"x": np.zeros((256, 256), dtype=np.float32)})
    start = time.perf_counter()
    model.execute(arrays)
    whole_s = time.perf_counter() - start
    options = Model.new_run_options()
    timer = threading.Timer(whole_s / 10, lambda: setattr(options, "terminate", True))

    timer.start()
    start = time.perf_counter()
    with pytest.raises(InferenceError, match=r"slow\.onnx failed while running: .*terminate"):
        model.execute(arrays, options)
    cancelled_s = time.perf_counter() - start
    timer.join()

    assert cancelled_s < whole_s
    assert model.execute(arrays)["y"].shape == (256, 256)  # only that run ended


def test_memory_of_a_large_batch_comes_back(tmp_path: Path) -> None:
    model = warm(quantized_files.slow(tmp_path / "free.onnx", steps=4, rows="n"))
    process = psutil.Process()
    before = process.memory_info().rss

    model.run({"x": np.zeros((40_000, 256), dtype=np.float32)})
    grown = process.memory_info().rss - before
    model.shrink()
    kept = process.memory_info().rss - before

    assert grown > 40e6
    assert kept < grown / 2


def test_a_session_without_an_arena_has_nothing_to_give_back(tmp_path: Path) -> None:
    settings = SessionSettings(arena=False, mem_pattern=False)

    Model.load(onnx_files.linear(tmp_path / "linear.onnx"), settings=settings).shrink()


@pytest.mark.parametrize("name", ["kws.onnx", "ic.onnx", "vww.onnx", "ad.onnx"])
def test_the_real_models_may_share_runs(name: str) -> None:
    assert warm(onnx_files.mlperf_tiny(name)).is_batchable


def test_a_model_does_not_share_runs_before_it_was_tried(tmp_path: Path) -> None:
    assert not Model.load(onnx_files.linear(tmp_path / "linear.onnx")).is_batchable
    assert warm(tmp_path / "linear.onnx").is_batchable


@pytest.mark.parametrize(
    "how", ["softmax over the rows", "sum of the rows before", "a small share of the mean", "chance"]
)
def test_rows_that_do_not_stand_alone_never_share_a_run(tmp_path: Path, how: str) -> None:
    assert not warm(quantized_files.mixing(tmp_path / "mixing.onnx", how)).is_batchable


def test_answers_that_never_differ_are_no_proof(tmp_path: Path) -> None:
    assert not warm(quantized_files.mixing(tmp_path / "constant.onnx", "nothing at all")).is_batchable


@pytest.mark.parametrize(
    ("element", "shape", "shares"),
    [
        (TensorProto.FLOAT, ["n", 3], True),
        (TensorProto.INT64, ["n", 8], True),
        (TensorProto.FLOAT, [1, 3], False),
        (TensorProto.FLOAT, [2, "m"], False),
        (TensorProto.STRING, ["n"], False),
    ],
)
def test_only_free_rows_of_numbers_share_runs(
    tmp_path: Path, element: int, shape: list[int | str], shares: bool
) -> None:
    assert warm(onnx_files.identity(tmp_path / "same.onnx", element, shape)).is_batchable is shares


def test_indices_stay_within_a_table_of_two(tmp_path: Path) -> None:
    assert warm(onnx_files.row_of_table(tmp_path / "table.onnx")).is_batchable


def test_a_model_that_fails_on_made_up_inputs_only_loses_sharing() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, 2])

    def fails(_: object) -> dict[str, Any]:
        raise InferenceError("no")

    assert not rows_are_independent(fails, inputs=[spec], outputs=[spec])


def test_a_monstrous_input_is_not_made_up() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, MAX_SAMPLE_VALUES + 1])

    def never(_: object) -> dict[str, Any]:
        raise AssertionError

    assert not rows_are_independent(never, inputs=[spec], outputs=[spec])


def test_made_up_samples_are_the_same_on_every_start_and_differ_by_seed() -> None:
    specs = [TensorSpec(name="x", datatype="FP32", shape=[-1, 1000]), TensorSpec(name="i", datatype="INT8", shape=[9])]
    one, again, other = sample(specs, seed=1), sample(specs, seed=1), sample(specs, seed=2)

    assert np.array_equal(one["x"], again["x"])
    assert not np.array_equal(one["x"], other["x"])
    assert -0.5 <= one["x"].min() < -0.45
    assert 0.45 < one["x"].max() <= 0.5
    assert abs(float(one["x"].mean())) < 0.05
    assert abs(float(np.corrcoef(one["x"][0], other["x"][0])[0, 1])) < 0.15
    assert set(one["i"].tolist()) <= {0, 1}


def test_exact_kernels_that_cannot_be_built_give_way_to_floats_with_the_same_answers() -> None:
    """ONNX Runtime 1.32 cannot rewrite the keyword model, whose weights share zero points, for CPUs without VNNI."""
    path = onnx_files.mlperf_tiny("kws.onnx")
    heard = np.load(onnx_files.mlperf_tiny("kws_inputs.npy")).reshape(1, 49, 10, 1)

    model = Model.load(path, settings=SessionSettings(int8_kernels=Int8Kernels.U8U8))

    np.testing.assert_allclose(
        model.run({"input_1": heard})["Identity"], Model.load(path).run({"input_1": heard})["Identity"], atol=1e-5
    )


def test_every_exact_kernel_gives_the_same_answers(tmp_path: Path) -> None:
    path = quantized_files.qdq_convolution(tmp_path / "conv.onnx")
    x = np.random.default_rng(0).random((2, 16, 8, 8)).astype(np.float32)

    answers = [
        Model.load(path, settings=SessionSettings(int8_kernels=kernels)).run({"x": x})["y"]
        for kernels in (Int8Kernels.U8U8, Int8Kernels.FLOAT)
    ]

    assert len(np.unique(answers[0])) > 20
    np.testing.assert_allclose(answers[0], answers[1], atol=0.0201)  # one step of the output's scale
