"""Chooses what of a bundle runs on this device: by its golden vectors, by memory, and by measurement.

Order, for every variant that is looked at:
1. it is loaded through the runtime, whose memory budget may refuse it, and answers its golden vectors as it must;
2. all that did take turns at being timed, round after round, so that a slow moment of the machine falls on all;
3. the fastest stays loaded, the others are let go, and the figures of all are told.
Candidates that together take more than HELD_SHARE of the free memory sleep but for their turns, and so do those that
the budget puts to sleep. With a hint only the hinted one is looked at, and where it does not hold, HintDidNotHold asks
for the others. Measuring ends after MEASURE_S, but not before every candidate had MIN_ROUNDS turns.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import psutil
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.candidates import candidates_for, fastest_right, fault_of, wanted_variants
from edge_agent.control.fit import admit_into_free_memory
from edge_agent.control.golden import Tensors, check_golden, load_golden
from edge_agent.control.installation import WarmModel, load_variant
from edge_agent.errors import AgentError, GoldenMismatchError
from edge_agent.runtime.cpu import cpu_signature
from edge_agent.runtime.loading import Loading
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import Manifest, Variant
from fleet_protocol.messages import VariantFigures

_LOG = logging.getLogger(__name__)
MEASURE_S = 1.0
"""How long the candidates of one bundle are timed together."""
MIN_ROUNDS, MAX_ROUNDS = 2, 40
HELD_SHARE = 0.25
"""How much of the memory that is free candidates may hold while they wait for their turns."""
_RUNS_A_TURN = 5
_TURN_S = 0.05


class HintDidNotHold(Exception):
    """The hinted variant is not right on this device, or does not fit: the other candidates must be looked at."""


class ChosenVariant(Struct, frozen=True, kw_only=True):
    """The variant that runs, loaded, and the figures of every one that was looked at, in the manifest's order."""

    warm: WarmModel
    figures: tuple[VariantFigures, ...]


class _Right(Struct, frozen=True, kw_only=True):
    """A candidate that answers as it must, what it is timed on, and whether it stays in memory between its turns."""

    warm: WarmModel
    inputs: Tensors
    stays: bool = True


def measured_with() -> str:
    """What figures depend on: this CPU and this ONNX Runtime."""
    return f"{cpu_signature()} {onnxruntime.__version__}"


def choose_variant(
    bundle: str,
    *,
    store: BundleStore,
    loading: Loading,
    hint: str = "",
    must_answer: bool = True,
    admit: Callable[[int], None] = admit_into_free_memory,
    machine: str | None = None,
    held_bytes: int | None = None,
) -> ChosenVariant:
    """Load the candidates of a fetched bundle and keep the fastest right one.

    `admit` is told the bytes that the manifest asks for and raises when the machine has no room; `must_answer` is
    False for a shadow; `machine` is the architecture, this machine's by default; `held_bytes` is what candidates may
    hold between their turns, HELD_SHARE of the free memory by default. Raises HintDidNotHold when `hint` names a
    candidate that fails and there are others, and the first candidate's failure when none is right.
    """
    manifest = store.manifest(bundle)
    admit(manifest.memory_bytes)
    architecture = machine or platform.machine()
    variants = wanted_variants(manifest, hint, architecture)
    figures: dict[str, VariantFigures] = {}
    right: dict[str, _Right] = {}
    first_failure: AgentError | None = None
    golden = store.verified_file(manifest.golden)
    room_bytes = int(HELD_SHARE * psutil.virtual_memory().available) if held_bytes is None else held_bytes
    try:
        for variant in variants:
            try:
                inputs, expected = load_golden(golden, variant.name)
                one = _checked(
                    manifest, variant, inputs, expected, store=store, loading=loading, must_answer=must_answer
                )
                room_bytes -= one.warm.slot.memory_bytes
                right[variant.name] = one if room_bytes >= 0 else _sleeping(one, loading)
            except AgentError as error:
                _LOG.warning("variant %s of %s %s: %s", variant.name, manifest.model, manifest.version, error)
                first_failure = first_failure or error
                figures[variant.name] = VariantFigures(variant=variant.name, right=False, fault=fault_of(error))
        figures |= _measured(right, loading)
        measured = [figures[variant.name] for variant in variants]
        best = fastest_right(measured)
        if best is not None:
            loading.residency.bring_back(right[best.variant].warm.slot)
    except BaseException:
        _let_go(right, loading)
        raise
    if best is None:
        _let_go(right, loading)
        if len(variants) < len(candidates_for(manifest, architecture)):
            raise HintDidNotHold(f"variant {hint} does not hold here: {first_failure}")
        raise first_failure or GoldenMismatchError(f"no variant of bundle {bundle} ran to the end of its measurement")
    kept = right.pop(best.variant)
    _let_go(right, loading)
    return ChosenVariant(warm=kept.warm, figures=tuple(measured))


def interleaved_medians_s(
    turns: Mapping[str, Callable[[], Sequence[float]]],
    *,
    measure_s: float = MEASURE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of what each turn timed, by name; the turns alternate round after round.

    Every other round goes backwards, so that none always follows the same one. Ends after `measure_s` or MAX_ROUNDS,
    but never before MIN_ROUNDS.
    """
    times: dict[str, list[float]] = {name: [] for name in turns}
    start = clock()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and clock() - start >= measure_s:
            break
        for name in sorted(turns, reverse=number % 2 == 1):
            times[name] += turns[name]()
    return {name: float(np.median(found)) for name, found in times.items()}


def _checked(
    manifest: Manifest,
    variant: Variant,
    inputs: Tensors,
    expected: Tensors,
    *,
    store: BundleStore,
    loading: Loading,
    must_answer: bool,
) -> _Right:
    warm = load_variant(manifest, variant, store=store, loading=loading, golden=inputs, must_answer=must_answer)
    try:
        model = loading.residency.bring_back(warm.slot)
        check_golden(model, inputs, expected, variant)
    except BaseException:
        loading.residency.remove(warm.slot)
        raise
    return _Right(warm=warm, inputs=timed_inputs(manifest, inputs))


def _measured(right: dict[str, _Right], loading: Loading) -> dict[str, VariantFigures]:
    """The figures of the right ones. One that fails while it is timed is let go, and is right no more."""
    failed: dict[str, AgentError] = {}
    medians = interleaved_medians_s({name: _turn_of(name, one, loading, failed) for name, one in right.items()})
    figures = {}
    for name, one in list(right.items()):
        if name in failed:
            _LOG.warning("variant %s failed while it was timed: %s", name, failed[name])
            loading.residency.remove(right.pop(name).warm.slot)
            figures[name] = VariantFigures(variant=name, right=False, fault=fault_of(failed[name]))
        else:
            figures[name] = VariantFigures(
                variant=name, right=True, p50_us=medians[name] * 1e6, memory_bytes=one.warm.slot.memory_bytes
            )
    return figures


def _turn_of(name: str, one: _Right, loading: Loading, failed: dict[str, AgentError]) -> Callable[[], Sequence[float]]:
    """A turn of one candidate; after its first error, which is noted in `failed`, it runs no more."""

    def turn() -> Sequence[float]:
        if name not in failed:
            try:
                return _timed_runs(loading.residency.bring_back(one.warm.slot), one.inputs)
            except AgentError as error:
                failed[name] = error
            finally:
                if not one.stays:
                    loading.residency.sleep(one.warm.slot)
        return [float("inf")]

    return turn


def _timed_runs(model: Model, inputs: Tensors) -> list[float]:
    model.run(inputs)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _RUNS_A_TURN and (not times or time.perf_counter() - begin < _TURN_S):
        start = time.perf_counter()
        model.run(inputs)
        times.append(time.perf_counter() - start)
    return times


def timed_inputs(manifest: Manifest, inputs: Tensors) -> Tensors:
    """The golden inputs' first row alone where the model takes any number of rows, else all of it.

    Most calls are lone ones, and a variant that wins on many rows may lose on one. By the signature, which all variants
    share, and not by how one of them batches: a dynamically quantized one answers rows together otherwise than apart.
    """
    tensors = (*manifest.inputs, *manifest.outputs)
    if all(tensor.shape and tensor.shape[0] == -1 for tensor in tensors):
        return {name: array[:1] for name, array in inputs.items()}
    return inputs


def _sleeping(one: _Right, loading: Loading) -> _Right:
    loading.residency.sleep(one.warm.slot)
    return replace(one, stays=False)


def _let_go(right: Mapping[str, _Right], loading: Loading) -> None:
    for one in right.values():
        loading.residency.remove(one.warm.slot)
