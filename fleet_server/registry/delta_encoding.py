"""Writes a delta: the alignment, its residual, compressed with the standard library's LZMA.

Of a few settings of LZMA's literal coder the one is taken that makes a sample of the residual smallest: bytes of int8
weights want no context, those of floats want their place among four. The dictionary is small whatever the file, since
it is what the device needs in memory. The same two files give the same bytes, with the same liblzma.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from typing import Any

from fleet_protocol.delta import (
    DELTA_MAGIC,
    MAX_DICTIONARY_BYTES,
    MAX_SEGMENTS,
    DeltaHeader,
    Segment,
    encode_header,
    padding,
)
from fleet_server.registry.delta_alignment import align, residual

_PIECE_BYTES = 1024 * 1024
_SAMPLE_PIECES = 4
_MIN_DICTIONARY_BYTES = 4096
_LITERAL_CODERS = ((0, 0, 0), (0, 2, 2), (2, 2, 2), (3, 0, 2))
"""(lc, lp, pb): bits of the byte before, of the place for literals, and of the place for everything else."""


class TooLargeError(ValueError):
    """The delta is not worth its while: it would exceed what was allowed."""


def write_delta(base: memoryview, new: memoryview, *, max_bytes: int, write: Callable[[bytes], object]) -> int:
    """Write the delta from `base` to `new` in pieces; returns its size in bytes.

    Raises TooLargeError as soon as it exceeds `max_bytes`, or when the two have too little to do with each other.
    """
    segments = align(base, new)
    if len(segments) > MAX_SEGMENTS:
        raise TooLargeError(f"{len(segments)} segments")
    header = encode_header(DeltaHeader(base_size_bytes=len(base), size_bytes=len(new), segments=tuple(segments)))
    filters = _best_filters(header, base, new, segments)
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)
    size_bytes = 0

    def put(piece: bytes) -> None:
        nonlocal size_bytes
        size_bytes += len(piece)
        if size_bytes > max_bytes:
            raise TooLargeError(f"more than {max_bytes} bytes")
        write(piece)

    put(DELTA_MAGIC)
    put(compressor.compress(header))
    for piece in _residuals(base, new, segments):
        put(compressor.compress(piece))
    put(compressor.flush())
    return size_bytes


def _residuals(base: memoryview, new: memoryview, segments: list[Segment]) -> Iterator[bytes]:
    """The residual of every segment, in pieces."""
    position = written = 0
    for offset, length in segments:
        if pad := padding(written):
            yield bytes(pad)
            written += pad
        for start in range(0, length, _PIECE_BYTES):
            count = min(_PIECE_BYTES, length - start)
            place = offset + start if offset >= 0 else offset
            yield residual(base, new, position + start, (place, count))
        position += length
        written += length


def _best_filters(header: bytes, base: memoryview, new: memoryview, segments: list[Segment]) -> list[dict[str, Any]]:
    sample, pieces = bytearray(header), 0
    for piece in _residuals(base, new, segments):
        sample += piece
        pieces += len(piece) == _PIECE_BYTES
        if pieces == _SAMPLE_PIECES:
            break
    size_bytes = max(_MIN_DICTIONARY_BYTES, min(MAX_DICTIONARY_BYTES, len(new)))
    choices = [
        [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": size_bytes, "lc": lc, "lp": lp, "pb": pb}]
        for lc, lp, pb in _LITERAL_CODERS
    ]
    return min(
        choices,
        key=lambda filters: len(lzma.compress(sample, lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)),
    )
