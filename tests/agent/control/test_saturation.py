"""8-bit products that overflow on x86 without VNNI: real kernels of a CPU that this machine need not be.

QEMU runs this very Python and ONNX Runtime as a Haswell has them: AVX2, no VNNI. The expected answers are whole-number
arithmetic, exact on every CPU. What ONNX Runtime's key `session.x64quantprecision` saves, which the agent sets where
the kernel reports no VNNI, and what not even that does, is measured here:

| variant | weights | with the key | without it |
|---|---|---|---|
| `int8` | 8 bits, constants, QDQ | right | saturates |
| `int8-integer` | 8 bits, constants, integer operators | right | saturates |
| `int8-computed` | 8 bits, quantized while running | saturates | saturates |
| `int8-reduced` | 7 bits | right | right |
| `fp32` | float | right | right |
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime.cpu import has_vnni
from tests.agent.control.bundles import SmallBundle, VariantFile, bundle_of_variants, store_in
from tests.agent.runtime import onnx_files
from tests.real_servers.requirements import missing, note_unverified, require_program

_QEMU = "qemu-x86_64-static"
_PROGRAM = Path(__file__).with_name("choose_on_this_cpu.py")
_ROOT = Path(__file__).resolve().parents[3]
_TIMEOUT_S = 120
_DEPTH, _CLASSES = 64, 16
X_SCALE, W_SCALE = 1 / 255, 1 / 127
Form = Literal["qdq", "integer", "computed"]
_TOLERANCE = 0.05
_WITHOUT_VNNI, _WITH_VNNI = "avx2 fma", "avx2 fma avx512_vnni"

_RIGHT = dict.fromkeys(("int8", "int8-integer", "int8-computed", "int8-reduced", "fp32"), True)

_rng = np.random.default_rng(11)
WEIGHTS = _rng.choice([-127, 100, 120, 127], size=(_DEPTH, _CLASSES)).astype(np.int8)
REDUCED = (WEIGHTS // 2).astype(np.int8)
QUANTIZED_X = _rng.integers(180, 256, size=(4, _DEPTH)).astype(np.uint8)


def emulated_haswell() -> list[str]:
    """The command before a program that runs it without VNNI. Skips the test where there is none."""
    if platform.machine() != "x86_64":
        missing(_QEMU, "the Python of this machine is not for x86-64")
    return [require_program(_QEMU), "-cpu", "Haswell"]


def exactly(weights: NDArray[np.int8], scale: float) -> NDArray[np.float32]:
    """The scores by whole numbers, which do not overflow."""
    products: NDArray[np.int64] = QUANTIZED_X.astype(np.int64) @ weights.astype(np.int64)
    return (products * (X_SCALE * scale)).astype(np.float32)


def int8_file(folder: Path, form: Form, weights: NDArray[np.int8] = WEIGHTS, scale: float = W_SCALE) -> bytes:
    """scores = x · weights by 8-bit products."""
    node, constant = helper.make_node, numpy_helper.from_array
    initializers = [
        constant(np.float32(X_SCALE), "x_scale"), constant(np.uint8(0), "x_zero"),
        constant(np.float32(scale), "w_scale"), constant(np.int8(0), "w_zero"),
    ]  # fmt: skip
    nodes = [node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"])]
    if form == "computed":
        initializers.append(constant(weights.astype(np.float32) * np.float32(scale), "w"))
        initializers.append(constant(np.float32(0), "nothing"))
        nodes += [
            node("ReduceMax", ["x"], ["largest"], keepdims=0),
            node("Mul", ["largest", "nothing"], ["zero"]),
            node("Add", ["w", "zero"], ["w_now"]),
            node("QuantizeLinear", ["w_now", "w_scale", "w_zero"], ["wq"]),
        ]
    else:
        initializers.append(constant(weights, "wq"))
    if form == "qdq":
        nodes += [
            node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
            node("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wd"]),
            node("MatMul", ["xd", "wd"], ["scores"]),
        ]
    else:
        initializers.append(constant(np.float32(X_SCALE * scale), "step"))
        nodes += [
            node("MatMulInteger", ["xq", "wq", "x_zero", "w_zero"], ["sums"]),
            node("Cast", ["sums"], ["sums_float"], to=TensorProto.FLOAT),
            node("Mul", ["sums_float", "step"], ["scores"]),
        ]
    return _saved(folder, nodes, initializers)


def fp32_file(folder: Path) -> bytes:
    weights = numpy_helper.from_array(WEIGHTS.astype(np.float32) * np.float32(W_SCALE), "w")
    return _saved(folder, [helper.make_node("MatMul", ["x", "w"], ["scores"])], [weights])


def _saved(folder: Path, nodes: list[Any], initializers: list[Any]) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    return onnx_files.save(
        folder / "model.onnx",
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _DEPTH])],
        outputs=[helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", _CLASSES])],
        initializers=initializers,
    ).read_bytes()


@pytest.fixture
def saturating(tmp_path: Path) -> SmallBundle:
    made = tmp_path / "made"
    full, reduced = exactly(WEIGHTS, W_SCALE), exactly(REDUCED, 2 * W_SCALE)
    return bundle_of_variants(
        made,
        {
            "int8": VariantFile(content=int8_file(made, "qdq"), scores=full),
            "int8-integer": VariantFile(content=int8_file(made, "integer"), scores=full),
            "int8-computed": VariantFile(content=int8_file(made, "computed"), scores=full),
            "int8-reduced": VariantFile(content=int8_file(made, "qdq", REDUCED, 2 * W_SCALE), scores=reduced),
            "fp32": VariantFile(content=fp32_file(made), scores=full),
        },
        golden_input=QUANTIZED_X.astype(np.float32) * np.float32(X_SCALE),
        golden_tolerance=_TOLERANCE,
    )


def choice(small: SmallBundle, folder: Path, *, flags: str, command: list[str]) -> dict[str, Any]:
    """What the agent chooses in a process of its own, whose kernel reports these CPU flags."""
    store, cpuinfo = folder / "store", folder / "cpuinfo"
    small.put_into(store_in(store))
    cpuinfo.write_text(f"processor : 0\nmodel name : tested\nflags : {flags}\n")
    done = subprocess.run(
        [*command, sys.executable, str(_PROGRAM), str(store), small.digest, str(cpuinfo)],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    fastest = min((name for name, right in told["right"].items() if right), key=lambda name: told["p50_us"][name])
    assert told["chosen"] == fastest, told
    return told


def test_a_cpu_without_vnni_refuses_what_saturates_there_whatever_its_key_saves(
    tmp_path: Path, saturating: SmallBundle
) -> None:
    told = choice(saturating, tmp_path, flags=_WITHOUT_VNNI, command=emulated_haswell())

    assert told["right"] == {**_RIGHT, "int8-computed": False}
    assert told["fault"]["int8-computed"] == "wrong answers"
    assert told["signature"] == "x86_64:avx2+fma"


def test_golden_vectors_catch_saturation_also_where_the_kernel_reports_a_vnni_that_is_not_there(
    tmp_path: Path, saturating: SmallBundle
) -> None:
    told = choice(saturating, tmp_path, flags=_WITH_VNNI, command=emulated_haswell())

    assert told["right"] == {**_RIGHT, "int8": False, "int8-integer": False, "int8-computed": False}
    assert told["chosen"] in {"int8-reduced", "fp32"}


def test_a_cpu_with_vnni_accepts_every_variant(
    tmp_path: Path, saturating: SmallBundle, request: pytest.FixtureRequest
) -> None:
    if not has_vnni():
        note_unverified(request.node, "VNNI", "this CPU has none: what it accepts of full 8-bit weights was not seen")
        pytest.skip("this CPU has no VNNI")
    told = choice(saturating, tmp_path, flags=_WITH_VNNI, command=[])

    assert told["right"] == _RIGHT
