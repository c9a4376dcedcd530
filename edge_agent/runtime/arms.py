"""Which arm of a model answers a call. Pure.

With a key the choice is a weighted race (rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Transactions on
Networking 6, 1998; weights by exponential clocks: Schindelhauer and Schomaker, SPAA 2005): every arm draws, from the
hash of salt, key and its own name, an exponential time at the rate of its weight; the earliest answers.

Invariants that follow, by test:
1. the same salt, key and arms always give the same arm, on every device and in whatever order the arms are listed;
2. an arm meets the share weight / sum of weights of all keys;
3. no change moves more keys than it must: raising a weight, or adding an arm, moves keys to that arm only; lowering a
   weight, or taking an arm away, moves keys away from that arm only. Scaling all weights moves none.
Without a key each call is drawn anew by weight.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from msgspec import Struct

_HASH_BYTES = 8
_UNIFORM_BITS = 53
_SPARE_BITS = 8 * _HASH_BYTES - _UNIFORM_BITS


class Arm(Struct, frozen=True, kw_only=True):
    """An arm that answers, and its weight relative to the others; above 0."""

    name: str
    weight: float


def choose_arm(arms: Sequence[Arm], key: str | None, *, salt: str, draw: Callable[[], float] = random.random) -> int:
    """The index in `arms` (one or more) of the arm that answers.

    `key` is whom the answer must stay the same for (a user, a session), `salt` what makes the choices of two models
    independent, `draw` gives uniform numbers in [0, 1) for calls without a key.
    """
    if len(arms) == 1:
        return 0
    if key is None:
        return _drawn(arms, draw())
    return min(range(len(arms)), key=lambda index: _race_time(arms[index], key, salt))


def _drawn(arms: Sequence[Arm], uniform: float) -> int:
    left = uniform * math.fsum(arm.weight for arm in arms)
    for index, arm in enumerate(arms):
        left -= arm.weight
        if left < 0:
            return index
    return len(arms) - 1  # what rounding left over


def _race_time(arm: Arm, key: str, salt: str) -> float:
    # a caller's key may hold anything that Python takes for text
    text = f"{salt}\0{arm.name}\0{key}".encode("utf-8", "surrogatepass")
    from hashlib import blake2b  # with it comes OpenSSL, which only calls with a key need

    number = int.from_bytes(blake2b(text, digest_size=_HASH_BYTES).digest(), "big") >> _SPARE_BITS
    uniform = (number + 0.5) / 2**_UNIFORM_BITS
    return -math.log(uniform) / arm.weight
