"""What is wrong with a simulated candidate: one or more harms, each a multiple or a share of what devices do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fleet_server.errors import InvalidRequestError

KINDS = ("accuracy", "errors", "latency", "memory", "crash", "hang", "silent")
_SHARES = ("crash", "hang", "silent")
_BREAK = re.compile(r"(?P<kind>[a-z]+):(?P<amount>[-+]?\d+(\.\d+)?)%?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaks:
    """The harm of a candidate; all zeros is a model that equals its incumbent.

    - `accuracy`, `errors`: points by which wrong outcomes and failed inferences become more, as shares;
    - `latency`, `memory`: the share by which p95 and resident memory grow;
    - `crash`, `hang`, `silent`: the share of devices on which it crashes, hangs, or which it silences for good.
    """

    accuracy: float = 0.0
    errors: float = 0.0
    latency: float = 0.0
    memory: float = 0.0
    crash: float = 0.0
    hang: float = 0.0
    silent: float = 0.0

    @property
    def is_harmless(self) -> bool:
        """Whether nothing is wrong."""
        return self == Breaks()


def parse_breaks(texts: Iterable[str]) -> Breaks:
    """The harms in KIND:AMOUNT% texts, as accuracy:-5%. Raises InvalidRequestError, which says what is allowed."""
    amounts: dict[str, float] = {}
    for text in texts:
        found = _BREAK.fullmatch(text.strip())
        if found is None or found["kind"] not in KINDS:
            raise InvalidRequestError(
                f"break {text[:80]!r}: write KIND:AMOUNT%, as accuracy:-5%; kinds are {', '.join(KINDS)}"
            )
        kind, amount = found["kind"], float(found["amount"]) / 100
        if kind in amounts:
            raise InvalidRequestError(f"break {kind} is there twice, keep one")
        if kind == "accuracy":
            amount = -amount
        highest = 1.0 if kind in ("accuracy", "errors", *_SHARES) else 100.0
        if not (math.isfinite(amount) and 0 < amount <= highest):
            sign = "-" if kind == "accuracy" else ""
            raise InvalidRequestError(
                f"break {text[:80]!r}: a harm is meant, from {kind}:{sign}0.1% to {kind}:{sign}{100 * highest:g}%; "
                "--equal is a model without one"
            )
        amounts[kind] = amount
    return Breaks(**amounts)
