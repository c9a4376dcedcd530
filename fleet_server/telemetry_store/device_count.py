"""How many different devices several merged windows have together: the smallest hashes of their names.

A K-minimum-values sketch (Bar-Yossef et al., "Counting distinct elements in a data stream", 2002): of the hashes of the
names, uniform in 0..2**40, the K smallest are kept. Up to K devices the count is exact; beyond, (K - 1) / the share of
the range that the K smallest take, with a standard error of 1 / sqrt(K), 4.4 %.

Invariant: a union is associative, commutative and idempotent, so devices seen again change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

K = 512
"""Hashes kept: at most 2.5 KB of a merged window."""
_HASH_BYTES = 5
_RANGE = 2 ** (8 * _HASH_BYTES)


@lru_cache(maxsize=2**17)
def hash_of(device: str) -> int:
    """The hash of a device's name, below 2**40; the same on every server."""
    return int.from_bytes(hashlib.blake2b(device.encode(), digest_size=_HASH_BYTES).digest(), "big")


def smallest(hashes: Iterable[int]) -> list[int]:
    """The K smallest different hashes, in order."""
    return sorted(set(hashes))[:K]


def estimate(kept: list[int]) -> int:
    """How many devices the K smallest hashes of all of them stand for."""
    return len(kept) if len(kept) < K else max(K, round((K - 1) * _RANGE / (kept[-1] + 1)))


def pack_hashes(kept: list[int]) -> bytes:
    """Bytes of hashes in order."""
    return b"".join(value.to_bytes(_HASH_BYTES, "big") for value in kept)


def unpack_hashes(data: bytes) -> list[int]:
    """The hashes of `pack_hashes`."""
    return [int.from_bytes(data[at : at + _HASH_BYTES], "big") for at in range(0, len(data), _HASH_BYTES)]
