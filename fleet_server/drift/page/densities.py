"""What is drawn of a number's distribution: densities over the true widths of the bins, on an axis that shows the bulk.

Decisions, in their order:
1. the axis spans the middle MIDDLE of both sides with room beside it, and little of outermost bins that are tails,
   for these reach to the reference's extremes and hold what lies beyond it: where in them is not known;
2. bins narrower than the picture can show are drawn as one, so that a bin as thin as a hair is no tower;
3. a height that would flatten all others is cut off, and said to be.
What lies beyond the axis is told as shares. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fleet_server.drift.findings import Distribution

MIDDLE = 0.96
ROOM = 0.35
"""Beside the middle, of its width; never beyond the bins."""
MIN_BIN_OF_AXIS = 1 / 120
MAX_TIMES_OTHERS = 3.0
"""A spike this many times as high as all beside it is cut off; a spike is within SPIKES_OF_AXIS."""
SPIKES_OF_AXIS = 0.04
MAX_SHARE_OF_TAIL = 0.05
"""An outermost bin that holds more of what was expected is no tail, and is shown whole."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One side: density between `edges` `[cells + 1]`, and the shares of values below and above the axis."""

    edges: tuple[float, ...]
    densities: tuple[float, ...]
    below: float
    above: float


@dataclass(frozen=True, kw_only=True)
class Densities:
    """Both sides on one axis from `low` to `high`, drawn up to the density `top`; `is_cut` where one is higher."""

    seen: Steps
    expected: Steps
    low: float
    high: float
    top: float
    is_cut: bool


def unusable(distribution: Distribution) -> str:
    """Why a distribution cannot be drawn, "" where it can: what a picture would hide is told instead."""
    cells = len(distribution.seen)
    if not cells or len(distribution.expected) != cells:
        return f"{cells} cells were seen and {len(distribution.expected)} expected"
    if not all(math.isfinite(share) and share >= 0 for share in (*distribution.seen, *distribution.expected)):
        return "a share is negative or not a number"
    if not sum(distribution.seen) > 0 or not sum(distribution.expected) > 0:
        return "one side has no values"
    if distribution.edges:
        if len(distribution.edges) != cells + 1:
            return f"{len(distribution.edges)} edges do not bound {cells} bins"
        if not all(first < second for first, second in pairwise(distribution.edges)):
            return "the bins' edges do not grow"
        if not math.isfinite(distribution.edges[-1] - distribution.edges[0]):
            return "the bins reach to infinity"
    elif len(distribution.labels) != cells:
        return f"{len(distribution.labels)} names do not fit {cells} classes"
    return ""


def densities(distribution: Distribution) -> Densities:
    """The densities of a usable distribution of a number."""
    edges = distribution.edges
    seen, expected = _shares(distribution.seen), _shares(distribution.expected)
    low, high = _limits(edges, seen, expected)
    kept = _kept_edges(edges, low, high)
    sides = [_steps(edges, shares, kept) for shares in (seen, expected)]
    tallest = max(max(one.densities) for one in sides)
    beside = max(_height_beside_spikes(one) for one in sides)
    top = min(tallest, MAX_TIMES_OTHERS * beside) if beside > 0 else tallest
    return Densities(
        seen=sides[0],
        expected=sides[1],
        low=low,
        high=high,
        top=top if top > 0 else 1.0,
        is_cut=tallest > top * (1 + 1e-9),
    )


def quantile(edges: Sequence[float], shares: Sequence[float], level: float) -> float:
    """The value under which the share `level` lies, values being spread evenly in each bin."""
    below = 0.0
    for share, (low, high) in zip(shares, pairwise(edges), strict=True):
        if share > 0 and below + share >= level:
            return low + (high - low) * min(1.0, max(0.0, (level - below) / share))
        below += share
    return edges[-1]


def share_below(edges: Sequence[float], shares: Sequence[float], value: float) -> float:
    """The share of values under `value`, values being spread evenly in each bin."""
    below = 0.0
    for share, (low, high) in zip(shares, pairwise(edges), strict=True):
        if value <= low:
            break
        below += share * min(1.0, (value - low) / (high - low))
    return below


def _shares(shares: Sequence[float]) -> list[float]:
    total = sum(shares)
    return [share / total for share in shares]


def _limits(edges: Sequence[float], seen: Sequence[float], expected: Sequence[float]) -> tuple[float, float]:
    sides = (seen, expected)
    tail = (1 - MIDDLE) / 2
    low = min(quantile(edges, shares, tail) for shares in sides)
    high = max(quantile(edges, shares, 1 - tail) for shares in sides)
    room = (high - low) * ROOM
    low, high = max(edges[0], low - room), min(edges[-1], high + room)
    if len(edges) > 3:
        room = (edges[-2] - edges[1]) * ROOM
        low = max(low, edges[1] - room) if expected[0] < MAX_SHARE_OF_TAIL else low
        high = min(high, edges[-2] + room) if expected[-1] < MAX_SHARE_OF_TAIL else high
    return (low, high) if low < high else (edges[0], edges[-1])


def _kept_edges(edges: Sequence[float], low: float, high: float) -> list[float]:
    least = (high - low) * MIN_BIN_OF_AXIS
    kept = [low]
    for edge in edges:
        if kept[-1] + least <= edge <= high - least:
            kept.append(edge)
    return [*kept, high]


def _steps(edges: Sequence[float], shares: Sequence[float], kept: Sequence[float]) -> Steps:
    under = [share_below(edges, shares, edge) for edge in kept]
    return Steps(
        edges=tuple(kept),
        densities=tuple(
            max(0.0, after - before) / (second - first)
            for (before, after), (first, second) in zip(pairwise(under), pairwise(kept), strict=True)
        ),
        below=max(0.0, under[0]),
        above=max(0.0, 1.0 - under[-1]),
    )


def _height_beside_spikes(steps: Steps) -> float:
    """The highest density when the tallest SPIKES_OF_AXIS of the axis are left out; 0 where all lies in these."""
    width = (steps.edges[-1] - steps.edges[0]) * SPIKES_OF_AXIS
    tallest_first = sorted(zip(steps.densities, pairwise(steps.edges), strict=True), reverse=True)
    for density, (first, second) in tallest_first:
        width -= second - first
        if width < 0:
            return density
    return 0.0
