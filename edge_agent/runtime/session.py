"""One loaded ONNX file: named arrays in, named arrays out.

Order of a run, and its invariants:
1. `prepare`: every declared input is there, with the declared type and shape: a few comparisons for one that fits.
   Only when something is off, `edge_agent.runtime.tensors` looks again: what converts without losing its meaning
   is converted, anything else is one InvalidInputError that names the input. ONNX Runtime never sees an array
   it could refuse, or crash on, for its type, shape or emptiness.
2. `execute`: ONNX Runtime runs prepared arrays on the caller's thread; its failure is an InferenceError, and it
   never rebuilds the session behind our back.
`run` is both. A `Model` never changes once it is warm, and may be run from any number of threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edge_agent.errors import InferenceError, ModelLoadError
from edge_agent.runtime import cpu
from edge_agent.runtime.model_file import quantizes
from edge_agent.runtime.row_independence import rows_are_independent, zeros
from edge_agent.runtime.run_deadlines import RUN_DEADLINES
from edge_agent.runtime.session_settings import (
    CPU_PROVIDER,
    Int8Kernels,
    SessionSettings,
    in_float_instead,
    session_options,
)
from edge_agent.runtime.tensors import NUMPY_TYPES, ORT_TYPES, conform
from fleet_protocol.manifest import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Arrays = Mapping[str, NDArray[Any]]

_MAX_REASON_CHARS = 300
_SILENT = 4
WARM_LIMIT_S = 600.0
"""For all runs on made-up inputs together: a model that takes longer hangs on some of them."""

# ONNX Runtime raises these by status code, with no common base but Exception.
ORT_FAILURES = (
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
    """One ONNX file, loaded. `inputs` and `outputs` are its signature, -1 a variable dimension.

    `settings` are those it runs with. `is_batchable` says whether rows of several calls may share one run; it is
    False until `warm` has seen that they do not influence each other. `digest` is the file's sha256 where known.
    """

    __slots__ = (
        "__weakref__", "_fits", "_options", "_run", "_session", "digest", "inputs", "is_batchable", "outputs", "path",
        "settings",
    )  # fmt: skip

    def __init__(
        self,
        *,
        path: Path,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        settings: SessionSettings,
        digest: str | None = None,
    ) -> None:
        self.path = path
        self.inputs = inputs
        self.outputs = outputs
        self.settings = settings
        self.digest = digest
        self.is_batchable = False
        self._session = session
        self._fits = _fitting(inputs)
        self._options = self.new_run_options()
        self._run = _runner(session, [output.name for output in outputs], self._options)

    @classmethod
    def load(cls, path: Path, *, threads: int = 1, settings: SessionSettings | None = None) -> Model:
        """Load an ONNX file for the CPU, with `settings` or else `threads` intra-op threads.

        Raises ModelLoadError for a file that is missing, is not ONNX, or that ONNX Runtime cannot run here,
        and ConfigError for a senseless number of threads.
        """
        wanted = settings or SessionSettings(threads=threads)
        require_file(path)
        if settings is None and cpu.int8_saturates() and quantizes(path):
            wanted = SessionSettings(threads=threads, int8_kernels=Int8Kernels.U8U8)
        session, used = open_session(path, settings=wanted)
        return cls.of_session(session, path=path, settings=used)

    @classmethod
    def of_session(cls, session: Any, *, path: Path, settings: SessionSettings, digest: str | None = None) -> Model:
        """A model over an ONNX Runtime session of the file `path`. Raises ModelLoadError for unservable tensors."""
        return cls(
            path=path,
            session=session,
            inputs=_specs(path, "input", session.get_inputs()),
            outputs=_specs(path, "output", session.get_outputs()),
            settings=settings,
            digest=digest,
        )

    def prepare(self, inputs: Mapping[str, ArrayLike]) -> Arrays:
        """`inputs` as arrays of exactly the declared types and shapes; itself when it is that already.

        Raises InvalidInputError.
        """
        return cast(Arrays, inputs) if self._fits(inputs) else conform(self.inputs, inputs)

    def execute(self, arrays: Arrays, run_options: Any = None) -> dict[str, NDArray[Any]]:
        """The outputs by name for arrays that `prepare` returned.

        `run_options` (`new_run_options`) cancel the run from another thread: their `terminate` set to True ends
        it with an InferenceError at the next operator. Raises InferenceError when ONNX Runtime fails.
        """
        try:
            return self._run(arrays, run_options)
        except ORT_FAILURES as error:
            raise InferenceError(f"{self.path.name} failed while running: {one_line(error)}") from error

    def cancel_runs(self) -> None:
        """End the runs in progress at their next operator, and every later one at once, with an InferenceError.

        For a model that is of no use any more: there is no way back. Runs with options of their own go on.
        """
        self._options.terminate = True

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """The outputs by name for `inputs` by name.

        Lists, and arrays of another numeric type that keep their values, are converted. Raises
        InvalidInputError for what cannot be, and InferenceError when ONNX Runtime fails.
        """
        return self.execute(self.prepare(inputs))

    def warm(self, *, limit_s: float = WARM_LIMIT_S) -> None:
        """Run a few times on made-up inputs, so that the first caller does not pay, and learn `is_batchable`.

        Variable dimensions are 1. Raises InferenceError when the model fails on zeros, or is not done within `limit_s`.
        """
        watched = RUN_DEADLINES.watch(time.perf_counter() + limit_s, self._options)
        try:
            self.execute(zeros(self.inputs))
            self.is_batchable = rows_are_independent(self.execute, inputs=self.inputs, outputs=self.outputs)
        finally:
            if RUN_DEADLINES.forget(watched):
                raise InferenceError(f"{self.path.name} hangs: warming it took longer than {limit_s:g} s")

    def shrink(self) -> None:
        """Give memory back that earlier, larger batches took. Raises InferenceError."""
        if not self.settings.arena:
            return
        options = self.new_run_options()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.execute(zeros(self.inputs), options)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that ONNX Runtime really started for it, in their order."""
        return tuple(self._session.get_providers())

    def operators_by_provider(self) -> dict[str, int]:
        """How many operators run where. Empty for a session of the CPU alone, and where ONNX Runtime cannot tell."""
        tell = getattr(self._session, "get_provider_graph_assignment_info", None)
        counts: dict[str, int] = {}
        if tell is None or self.settings.providers == (CPU_PROVIDER,):
            return counts
        try:
            for part in tell():
                counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        except ORT_FAILURES:
            return {}
        return counts

    @staticmethod
    def new_run_options() -> Any:
        """Options for one run that may be cancelled. What fails is raised, so it is not logged as well."""
        options = ort.RunOptions()
        options.log_severity_level = _SILENT
        return options


def require_file(path: Path) -> None:
    """Raise ModelLoadError unless `path` is a file."""
    if not path.is_file():
        raise ModelLoadError(f"model file {path} is not there: check the path")


def open_session(
    path: Path, *, settings: SessionSettings, graph: bytes | None = None, save_graph: Path | None = None
) -> tuple[Any, SessionSettings]:
    """An ONNX Runtime session of the file `path`, and the settings that it was possible with.

    `graph` runs in place of the file's content (its optimised form); `save_graph` is where the optimised graph is
    written. Raises ModelLoadError.
    """
    try:
        return _session(path, settings, graph, save_graph), settings
    except ort_errors.InvalidProtobuf:
        raise ModelLoadError(f"{path} is not an ONNX model: export it with torch.onnx or tf2onnx") from None
    except ORT_FAILURES as error:
        remedy = in_float_instead(settings)
        if remedy is not None:
            # ONNX Runtime 1.32 fails to rewrite some quantized graphs, such as those that share zero points
            return open_session(path, settings=remedy, graph=graph, save_graph=save_graph)
        raise ModelLoadError(f"ONNX Runtime {ort.__version__} cannot load {path}: {one_line(error)}") from None


def _session(path: Path, settings: SessionSettings, graph: bytes | None, save_graph: Path | None) -> Any:
    options = session_options(settings)
    if save_graph is not None:
        options.optimized_model_filepath = str(save_graph)
    session = ort.InferenceSession(graph or str(path), options, providers=list(settings.providers))
    session.disable_fallback()
    return session


def _fitting(specs: tuple[TensorSpec, ...]) -> Callable[[Mapping[str, Any]], bool]:
    """A function that tells whether inputs by name are arrays of exactly these types and shapes, none of them empty."""
    careful = _fitting_any(specs)
    if len(specs) != 1 or specs[0].datatype == "BYTES" or not specs[0].shape:
        return careful
    (spec,) = specs
    name, dtype, rank = spec.name, NUMPY_TYPES[spec.datatype], len(spec.shape)
    first, tail = spec.shape[0], tuple(spec.shape[1:])
    if any(size < 1 for size in tail) or first == 0:
        return careful

    # One input whose only variable dimension is the first, as most models have: a quarter of the general cost.
    # Element types are one object each in numpy, but for odd ones that the careful look compares by value.
    def fits(inputs: Mapping[str, Any]) -> bool:
        if len(inputs) == 1 and name in inputs:
            array = inputs[name]
            if type(array) is np.ndarray and array.dtype is dtype:
                shape = array.shape
                if len(shape) == rank and shape[1:] == tail and (shape[0] == first if first > 0 else shape[0] > 0):
                    return True
        return careful(inputs)

    return fits


def _fitting_any(specs: tuple[TensorSpec, ...]) -> Callable[[Mapping[str, Any]], bool]:
    # name, dtype, rank and the fixed (axis, size) pairs: all that is compared
    expected = tuple(
        (
            spec.name,
            NUMPY_TYPES[spec.datatype],
            len(spec.shape),
            tuple((axis, size) for axis, size in enumerate(spec.shape) if size >= 0),
        )
        for spec in specs
    )

    def fits(inputs: Mapping[str, Any]) -> bool:
        if len(inputs) != len(expected):
            return False
        for name, dtype, rank, fixed in expected:
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

    return fits


def _runner(session: Any, names: list[str], default: Any) -> Callable[[Arrays, Any], dict[str, NDArray[Any]]]:
    """A function that runs prepared arrays with given or default options."""
    # The public `run` checks again, in Python, what `prepare` has checked: a tenth of a small model's whole run.
    # An ONNX Runtime without an inner session of that name runs by its public one.
    run = getattr(session, "_sess", session).run
    # ONNX Runtime reads options and never writes them, so the default ones serve all threads
    if len(names) == 1:
        (only,) = names

        def run_one(arrays: Arrays, options: Any) -> dict[str, NDArray[Any]]:
            return {only: run(names, arrays, options or default)[0]}

        return run_one

    def run_all(arrays: Arrays, options: Any) -> dict[str, NDArray[Any]]:
        return dict(zip(names, run(names, arrays, options or default), strict=True))

    return run_all


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


def one_line(error: BaseException) -> str:
    """An ONNX Runtime message on one line of bounded length."""
    return " ".join(str(error).split())[:_MAX_REASON_CHARS]
