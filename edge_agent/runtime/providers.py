"""Which execution provider runs a model: the first that is here and gives the CPU's answers.

Order, and its invariants:
1. The wanted providers, those of ONNX Runtime that are here, in the order wanted; the CPU is always the last.
2. Each but the CPU must start, take at least one operator, and answer the probe inputs within TOLERANCE of what the
   CPU answers. One that does not is a `ProviderFallback` with its reason, and the next is tried.
3. Only a provider that nobody has is an error: a name that is unknown, or known and not here, is a ConfigError.
ONNX Runtime's own silent fallback is off, so what was chosen here is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_agent.errors import AgentError, ConfigError
from edge_agent.runtime.row_independence import sample, zeros
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import CPU_PROVIDER, SessionSettings
from fleet_protocol.manifest import TensorSpec

TOLERANCE = 1e-2
"""Of an output's largest value: accelerators round to fewer bits and add in another order."""
AUTO = "auto"
_KNOWN = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cpu": CPU_PROVIDER,
}
_MAX_REASON_CHARS = 300

Arrays = Mapping[str, NDArray[Any]]


class ProviderFallback(Struct, frozen=True, kw_only=True):
    """A provider that was wanted and does not run the model, and why."""

    provider: str
    reason: str


class OpenedModel(Struct, frozen=True, kw_only=True):
    """A model that was opened with certain providers, those that really started, and what each of them runs."""

    model: Model
    started: tuple[str, ...]
    operators: Mapping[str, int]


OpenModel = Callable[[SessionSettings], OpenedModel]


def provider_order(wanted: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """ONNX Runtime's names of the providers to try, in their order, the CPU last.

    `wanted` are short names ("cuda"), ONNX Runtime's own, or "auto" for every known one that is `available`.
    Raises ConfigError for one that is unknown or not available.
    """
    order: list[str] = []
    for name in wanted:
        order += [full for full in _KNOWN.values() if full in available] if name == AUTO else [_full(name, available)]
    return (*dict.fromkeys(full for full in order if full != CPU_PROVIDER), CPU_PROVIDER)


def probe_inputs(inputs: Sequence[TensorSpec]) -> Arrays:
    """Made-up inputs on which providers are compared: the same on every start."""
    return zeros(inputs) if any(spec.datatype == "BYTES" for spec in inputs) else sample(inputs, seed=7)


def open_on_best(
    settings: SessionSettings, *, order: Sequence[str], open_model: OpenModel, probe: Arrays | None = None
) -> tuple[OpenedModel, tuple[ProviderFallback, ...]]:
    """The model on the first provider of `order` that runs it rightly, and which ones did not.

    `open_model` opens the model with settings; `probe` are inputs to compare on, made up when None. Raises what
    `open_model` raises for the CPU, on which everything falls back.
    """
    on_cpu = open_model(replace(settings, providers=(CPU_PROVIDER,), insist=False))
    candidates = [name for name in order if name != CPU_PROVIDER]
    if not candidates:
        return on_cpu, ()
    inputs = probe if probe is not None else probe_inputs(on_cpu.model.inputs)
    expected = on_cpu.model.run(inputs)
    fallbacks: list[ProviderFallback] = []
    for name in candidates:
        try:
            opened = open_model(replace(settings, providers=(name, CPU_PROVIDER)))
            fault = _fault(name, opened, opened.model.run(inputs), expected)
        except AgentError as error:
            fault = str(error)
        else:
            if fault is None:
                return opened, tuple(fallbacks)
        fallbacks.append(ProviderFallback(provider=name, reason=fault[:_MAX_REASON_CHARS]))
    return on_cpu, tuple(fallbacks)


def largest_difference(got: Arrays, expected: Arrays) -> float:
    """The largest difference of any output from the expected one, in shares of that output's largest value.

    Infinite for another shape or type, for numbers where there should be none, and for the reverse.
    """
    worst = 0.0
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.shape != want.shape or have.dtype != want.dtype:
            return float("inf")
        if want.dtype.kind == "f":
            worst = max(worst, _relative(have.astype(np.float64), want.astype(np.float64)))
        elif not np.array_equal(have, want):
            return float("inf")
    return worst


def _full(name: str, available: Sequence[str]) -> str:
    full = _KNOWN.get(name.lower(), name)
    here = ", ".join(short for short, known in _KNOWN.items() if known in available) or "none"
    if full not in _KNOWN.values():
        raise ConfigError(
            f"runtime.providers: {name[:80]!r} is unknown: use {AUTO} or some of {', '.join(_KNOWN)}; here are: {here}"
        )
    if full not in available:
        raise ConfigError(
            f"runtime.providers: {name[:80]!r} is not in this ONNX Runtime: here are: {here}; install one that has it"
        )
    return full


def _fault(name: str, opened: OpenedModel, got: Arrays, expected: Arrays) -> str | None:
    if name not in opened.started:
        return "ONNX Runtime did not start it: its driver or library is missing"
    if opened.operators and not opened.operators.get(name):
        return "it takes no operator of this model"
    difference = largest_difference(got, expected)
    if not difference <= TOLERANCE:
        return f"its answers differ from the CPU's by {difference:.2g} of the largest, {TOLERANCE:g} is allowed"
    return None


def _relative(have: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    finite = np.isfinite(want)
    # infinities and NaN must be the same ones in the same places
    if not np.array_equal(finite, np.isfinite(have)) or not np.array_equal(
        np.where(finite, 0.0, have), np.where(finite, 0.0, want), equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float(np.abs(have[finite] - want[finite]).max())
    largest = float(np.abs(want[finite]).max())
    return 0.0 if difference == 0.0 else difference / largest if largest > 0.0 else float("inf")
