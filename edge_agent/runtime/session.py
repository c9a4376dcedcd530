"""One loaded ONNX file: named arrays in, named arrays out.

Order of a run, and its invariants:
1. Every declared input is there, with the declared type and shape: a few attribute comparisons.
2. Only when something is off, `edge_agent.runtime.tensors` looks again: what converts without losing its
   meaning is converted, anything else is one InvalidInputError that names the input. ONNX Runtime never
   sees an array it could refuse, or crash on, for its type, shape or emptiness.
3. ONNX Runtime runs it on the CPU provider, on the caller's thread; its failure is an InferenceError, and
   it never rebuilds the session behind our back.
A `Model` never changes after loading and may be run from any number of threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edge_agent.errors import ConfigError, InferenceError, ModelLoadError
from edge_agent.runtime import cpu
from edge_agent.runtime.tensors import NUMPY_TYPES, ORT_TYPES, conform
from fleet_protocol.manifest import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MAX_THREADS = 256
"""More intra-op threads than this is a mistake, not a machine."""
_MAX_REASON_CHARS = 300
_SEVERITY_ERROR = 3

# ONNX Runtime raises these by status code, with no common base but Exception.
_ORT_FAILURES = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


class Model:
    """One ONNX file, loaded. `inputs` and `outputs` are its signature, -1 a variable dimension."""

    __slots__ = ("_expected", "_output_names", "_session", "inputs", "outputs", "path")

    def __init__(
        self, *, path: Path, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.path = path
        self.inputs = inputs
        self.outputs = outputs
        self._session = session
        self._output_names = [output.name for output in outputs]
        # name, dtype, rank and the fixed (axis, size) pairs: all that the fast path compares
        self._expected = tuple(
            (
                spec.name,
                NUMPY_TYPES[spec.datatype],
                len(spec.shape),
                tuple((axis, size) for axis, size in enumerate(spec.shape) if size >= 0),
            )
            for spec in inputs
        )

    @classmethod
    def load(cls, path: Path, *, threads: int = 1) -> Model:
        """Load an ONNX file for the CPU with `threads` intra-op threads.

        Raises ModelLoadError for a file that is missing, is not ONNX, or that ONNX Runtime cannot run here,
        and ConfigError for a senseless number of threads.
        """
        if not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"threads is {threads}: use 1 to {MAX_THREADS}")
        if not path.is_file():
            raise ModelLoadError(f"model file {path} is not there: check the path")
        options = session_options(threads=threads, int8_saturates=cpu.int8_saturates())
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except ort_errors.InvalidProtobuf:
            raise ModelLoadError(f"{path} is not an ONNX model: export it with torch.onnx or tf2onnx") from None
        except _ORT_FAILURES as error:
            raise ModelLoadError(f"ONNX Runtime {ort.__version__} cannot load {path}: {_one_line(error)}") from None
        session.disable_fallback()
        return cls(
            path=path,
            session=session,
            inputs=_specs(path, "input", session.get_inputs()),
            outputs=_specs(path, "output", session.get_outputs()),
        )

    def prepare(self, inputs: Mapping[str, ArrayLike]) -> Mapping[str, NDArray[Any]]:
        """`inputs` as arrays of exactly the declared types and shapes; itself when it is that already.

        For callers that look at the arrays too: `run` on the result converts nothing again. Raises InvalidInputError.
        """
        return cast(Mapping[str, NDArray[Any]], inputs) if self._fits(inputs) else conform(self.inputs, inputs)

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """The outputs by name for `inputs` by name.

        Lists, and arrays of another numeric type that keep their values, are converted. Raises
        InvalidInputError for what cannot be, and InferenceError when ONNX Runtime fails.
        """
        try:
            outputs = self._session.run(self._output_names, self.prepare(inputs))
        except _ORT_FAILURES as error:
            raise InferenceError(f"{self.path.name} failed while running: {_one_line(error)}") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def warm(self) -> None:
        """Run once on zeros, with 1 for every variable dimension, so that the first caller does not pay for it."""
        self.run(
            {
                spec.name: np.full([max(size, 1) for size in spec.shape], "", dtype=object)
                if spec.datatype == "BYTES"
                else np.zeros([max(size, 1) for size in spec.shape], dtype=NUMPY_TYPES[spec.datatype])
                for spec in self.inputs
            }
        )

    def _fits(self, inputs: Mapping[str, Any]) -> bool:
        if len(inputs) != len(self._expected):
            return False
        for name, dtype, rank, fixed in self._expected:
            array = inputs.get(name)
            # strings always take the careful path: ONNX Runtime must only ever see str in them
            if type(array) is not np.ndarray or array.dtype != dtype or array.ndim != rank or array.dtype.hasobject:
                return False
            shape = array.shape
            if not array.size:
                return False
            for axis, size in fixed:
                if shape[axis] != size:
                    return False
        return True


def session_options(*, threads: int, int8_saturates: bool) -> Any:
    """ONNX Runtime's options for a small CPU: sequential, no spinning, exact quantized kernels."""
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if int8_saturates:
        # this key makes u8s8 kernels, which would saturate silently, u8u8 while loading
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _specs(path: Path, kind: str, nodes: list[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        datatype = ORT_TYPES.get(node.type)
        if datatype is None:
            raise ModelLoadError(
                f"{path}: {kind} {node.name!r} is a {node.type}: only tensors of plain types can be served"
                " (export scikit-learn models with zipmap=False)"
            )
        shape = [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]
        specs.append(TensorSpec(name=node.name, datatype=datatype, shape=shape))
    return tuple(specs)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_REASON_CHARS]
