"""Which layers stay in float because the model is faster so.

Quantizing a layer gains only what its integer kernel gains over the float one, less the conversions at the borders
between them; both differ by CPU, by shape and by neighbour, so nothing but measuring tells. The walk starts from a
placement, comes to every layer in the graph's order, and moves it (or it and the next one) to the other side when the
whole model is measured to be faster by more than MIN_GAIN. It starts once from everything quantized and once from
everything in float, because each start ends in another local optimum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from edge_agent.errors import AgentError
from edge_agent.runtime.session import Model
from quantize.errors import QuantizationFailedError
from quantize.scheme import Scheme
from quantize.search.workbench import Workbench

MIN_GAIN = 0.015
"""The share of a run that moving layers must save."""
STEP_S = 0.05
"""How long a move that looks promising after a glance is measured."""


@dataclass(kw_only=True)
class Placement:
    """Where a walk has come to, and what leaving single layers in float saved when it came to them."""

    scheme: Scheme
    float_gain_us: dict[str, float] = field(default_factory=dict)
    moves: int = 0
    is_complete: bool = True


def place_for_speed(bench: Workbench, base: Scheme, *, budget_s: float) -> Placement:
    """The fastest placement that the walks from both starts find within `budget_s`, as a scheme."""
    names = tuple(layer.name for layer in bench.prepared.layers)
    end = time.perf_counter() + budget_s
    quantized = _walk(bench, Placement(scheme=base), names, end=(time.perf_counter() + end) / 2)
    from_float = _walk(bench, Placement(scheme=replace(base, excluded=names)), names, end=end)
    contest = [
        (model, placement)
        for placement in (quantized, from_float)
        if set(placement.scheme.excluded) != set(names) and (model := _opened(bench, placement.scheme)) is not None
    ]
    if not contest:
        return quantized
    latencies = bench.speeds([model for model, _ in contest])
    best = min(range(len(contest)), key=lambda place: latencies[place].p50_us)
    return Placement(
        scheme=contest[best][1].scheme,
        float_gain_us={**from_float.float_gain_us, **quantized.float_gain_us},
        moves=quantized.moves + from_float.moves,
        is_complete=quantized.is_complete and from_float.is_complete,
    )


def _walk(bench: Workbench, placement: Placement, names: Sequence[str], *, end: float) -> Placement:
    model = _opened(bench, placement.scheme)
    if model is None:
        return placement
    for place, name in enumerate(names):
        for moved in _moves(names, place):
            if time.perf_counter() >= end:
                placement.is_complete = False
                return placement
            candidate = replace(placement.scheme, excluded=toggled(placement.scheme.excluded, moved, names))
            other = _opened(bench, candidate)
            if other is None:
                continue
            placement.moves += 1
            now, then = bench.speeds([model, other], budget_s=0.0)
            if then.p50_us < now.p50_us:  # most moves are seen to lose at a glance
                now, then = bench.speeds([model, other], budget_s=STEP_S)
            saved_us = now.p50_us - then.p50_us
            if len(moved) == 1:
                to_float = name in candidate.excluded
                placement.float_gain_us[name] = saved_us if to_float else -saved_us
            if saved_us > MIN_GAIN * now.p50_us:
                placement.scheme, model = candidate, other
                break
    return placement


def _moves(names: Sequence[str], place: int) -> Iterator[tuple[str, ...]]:
    """The layer alone, and with the next: a single one between two of the other kind pays for both borders."""
    yield (names[place],)
    if place + 1 < len(names):
        yield (names[place], names[place + 1])


def toggled(excluded: Sequence[str], moved: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """`excluded` with the `moved` layers on the other side, in the graph's `order`."""
    wanted = set(excluded) ^ set(moved)
    return tuple(name for name in order if name in wanted)


def _opened(bench: Workbench, scheme: Scheme) -> Model | None:
    try:
        return bench.load(bench.build(scheme))
    except (AgentError, QuantizationFailedError):
        return None
