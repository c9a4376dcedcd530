"""Which bytes of a new file are best written as the difference from which bytes of the base. Pure.

1. Weights of the same name and size lie on each other (then those of the same size, in order): after training they
   differ a little in most bytes, and no search for equal bytes would find them.
2. What is left (nodes, names, scales) is matched by equal runs of _RUN_BYTES, which go on over short differences.
3. A segment whose difference has more entropy than its own bytes stands without a base.
4. Neighbours that are equal to the base, and go on in it, become one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.delta import NO_BASE, Segment
from fleet_server.registry.onnx_layout import Weights, weights_in

_RUN_BYTES = 12
_BRIDGED_BYTES = 64
_RESUMED_BYTES = 8
_MIN_ANCHOR_BYTES = 32
_MAX_SEARCHED_BYTES = 2 * 1024 * 1024
"""Of the base, and of the new file, without weights: more is not searched for equal runs."""
_ENTROPY_SAMPLE_BYTES = 1024 * 1024

_Match = tuple[int, int, int]
"""(start in the new file, start in the base, length), in bytes."""


def align(base: memoryview, new: memoryview) -> list[Segment]:
    """The segments of `new` on `base`, as `fleet_protocol.delta` writes them; together they are as long as `new`."""
    anchors = _anchors(weights_in(base), weights_in(new))
    index = _Index(base, anchors)
    matches: list[_Match] = []
    position = 0
    for anchor in [*anchors, (len(new), len(base), 0)]:
        before = matches[-1] if matches else (0, 0, 0)
        matches += _in_gap(base, new, (position, anchor[0]), (before[1] + before[2], anchor[1]), index)
        if anchor[2]:
            matches.append(anchor)
        position = anchor[0] + anchor[2]
    return _merged(base, new, _segments(base, new, matches))


def residual(base: memoryview, new: memoryview, offset: int, segment: Segment) -> bytes:
    """What is written of `segment`, which begins at `offset` of the new file."""
    base_offset, length = segment
    mine = new[offset : offset + length]
    if base_offset == NO_BASE:
        return bytes(mine)
    return (_bytes(mine) - _bytes(base[base_offset : base_offset + length])).tobytes()


def _anchors(base: list[Weights], new: list[Weights]) -> list[_Match]:
    """Weights that lie on each other, in the order of the new file."""
    by_name = {weights.name: weights for weights in base}
    left = {weights.offset: weights for weights in base}
    found: dict[int, Weights] = {}
    for weights in new:
        same = by_name.get(weights.name)
        if same is not None and same.length == weights.length and same.offset in left:
            del left[same.offset]
            found[weights.offset] = same
    by_length: dict[int, list[Weights]] = {}
    for weights in left.values():
        by_length.setdefault(weights.length, []).append(weights)
    for weights in new:
        if weights.offset not in found and by_length.get(weights.length):
            found[weights.offset] = by_length[weights.length].pop(0)
    return [
        (weights.offset, found[weights.offset].offset, weights.length)
        for weights in sorted(new, key=lambda one: one.offset)
        if weights.offset in found and weights.length >= _MIN_ANCHOR_BYTES
    ]


class _Index:
    """Where runs of bytes begin in the parts of the base that no anchor covers."""

    def __init__(self, base: memoryview, anchors: list[_Match]) -> None:
        self._starts: dict[bytes, int] = {}
        self.left_bytes = _MAX_SEARCHED_BYTES
        position, searched = 0, 0
        for _, start, length in [*sorted(anchors, key=lambda anchor: anchor[1]), (0, len(base), 0)]:
            content = bytes(base[position : min(start, position + _MAX_SEARCHED_BYTES - searched)])
            for place in range(len(content) - _RUN_BYTES + 1):
                self._starts.setdefault(content[place : place + _RUN_BYTES], position + place)
            searched += len(content)
            position = max(position, start + length)

    def find(self, run: bytes) -> int | None:
        """Where the run is in the base."""
        return self._starts.get(run)


def _in_gap(
    base: memoryview, new: memoryview, gap: tuple[int, int], base_gap: tuple[int, int], index: _Index
) -> Iterator[_Match]:
    start, end = gap
    if end - start == base_gap[1] - base_gap[0]:
        if end > start:
            yield start, base_gap[0], end - start
        return
    end_of_search = min(end, start + index.left_bytes)
    index.left_bytes -= end_of_search - start
    position, go_on = start, base_gap[0]
    while position + _RUN_BYTES <= end_of_search:
        run = bytes(new[position : position + _RUN_BYTES])
        same_place = bytes(base[go_on : go_on + _RUN_BYTES]) == run
        at = go_on if same_place else index.find(run)
        if at is None:
            position, go_on = position + 1, go_on + 1
            continue
        length = _matching(base[at:], new[position:end])
        yield position, at, length
        position, go_on = position + length, at + length


def _matching(base: memoryview, new: memoryview) -> int:
    """How far the two go on together, over differences of at most _BRIDGED_BYTES, to the last equal byte."""
    length = 0
    while True:
        length += _equal(base[length:], new[length:])
        for skipped in range(1, _BRIDGED_BYTES + 1):
            resumed = length + skipped
            ahead = bytes(new[resumed : resumed + _RESUMED_BYTES])
            if len(ahead) == _RESUMED_BYTES and bytes(base[resumed : resumed + _RESUMED_BYTES]) == ahead:
                length = resumed
                break
        else:
            return length


def _equal(base: memoryview, new: memoryview) -> int:
    """How many bytes both begin with."""
    least, step = min(len(base), len(new)), 4096
    for start in range(0, least, step):
        end = min(start + step, least)
        differing = np.flatnonzero(_bytes(base[start:end]) != _bytes(new[start:end]))
        if len(differing):
            return start + int(differing[0])
    return least


def _segments(base: memoryview, new: memoryview, matches: list[_Match]) -> Iterator[Segment]:
    position = 0
    for start, base_start, length in [*matches, (len(new), 0, 0)]:
        if start > position:
            yield NO_BASE, start - position
        if length:
            mine, theirs = _bytes(new[start : start + length]), _bytes(base[base_start : base_start + length])
            yield (base_start if _saves(mine, theirs) else NO_BASE), length
        position = start + length


def _saves(new: NDArray[np.uint8], base: NDArray[np.uint8]) -> bool:
    """Whether the difference takes fewer bits than the bytes themselves, by their order-0 entropy."""
    step = max(1, len(new) // _ENTROPY_SAMPLE_BYTES)
    return _entropy_bits(new[::step] - base[::step]) <= _entropy_bits(new[::step])


def _entropy_bits(content: NDArray[np.uint8]) -> float:
    counts = np.bincount(content, minlength=256)
    shares = counts[counts > 0] / len(content)
    return float(-(shares * np.log2(shares)).sum())


def _merged(base: memoryview, new: memoryview, segments: Iterator[Segment]) -> list[Segment]:
    """Neighbours that go on in the base and are equal to it, and neighbours without a base, as one."""
    merged: list[Segment] = []
    position, unchanged_before = 0, False
    for offset, length in segments:
        unchanged = offset != NO_BASE and base[offset : offset + length] == new[position : position + length]
        if merged:
            before_offset, before_length = merged[-1]
            goes_on = unchanged and unchanged_before and before_offset + before_length == offset
            if goes_on or offset == before_offset == NO_BASE:
                merged[-1] = before_offset, before_length + length
                position += length
                continue
        merged.append((offset, length))
        position, unchanged_before = position + length, unchanged
    return merged


def _bytes(content: memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
