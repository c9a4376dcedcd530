"""How large a move is, apart from how sure it is: the headline of a signal, and the levels of the heat map's colours.

The levels are fixed for each kind of signal, never stretched to what a report happens to hold: a quiet fleet looks
quiet. Level MEDIUM starts where a drift's severity is medium, level HIGH where it is high; why there stands in
`fleet_server.drift.severity`. The size of a time is of the whole shape (`fleet_server.drift.timelines`): for classes it
is the length of the move of the shares, which for about ten classes alike is near the Hellinger distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fleet_server.drift.findings import DriftReport, SignalFinding, SignalKind
from fleet_server.drift.page import words
from fleet_server.drift.severity import (
    HIGH_HELLINGER,
    HIGH_LOSS,
    HIGH_MMD,
    HIGH_SHIFT_SD,
    MEDIUM_HELLINGER,
    MEDIUM_LOSS,
    MEDIUM_MMD,
    MEDIUM_SHIFT_SD,
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of one kind of signal: what it is measured in, and the bounds between the levels, growing."""

    name: str
    unit: str
    bounds: tuple[float, ...]

    def level(self, size: float) -> int:
        """The level of a size, 0 to LEVELS - 1, whatever its sign."""
        return sum(abs(size) >= bound for bound in self.bounds)

    def text(self, size: float) -> str:
        """A size with its unit."""
        if self.unit == "points":
            return f"{words.points(size)} points"
        return f"{words.figure(size)} {self.unit}"

    def bounds_text(self) -> str:
        """The bounds between the levels, for a legend."""
        if self.unit == "points":
            return ", ".join(f"{bound * 100:g}" for bound in self.bounds) + " percentage points"
        return f"{', '.join(f'{bound:g}' for bound in self.bounds)} {self.unit}"


LEVELS, MEDIUM, HIGH = 6, 3, 5
_NUMBERS = Scale(name="numbers", unit=words.SIGMA, bounds=(0.1, 0.2, MEDIUM_SHIFT_SD, 0.5, HIGH_SHIFT_SD))
_CLASSES = Scale(name="classes", unit="of shares", bounds=(0.03, 0.06, MEDIUM_HELLINGER, 0.14, HIGH_HELLINGER))
_EMBEDDING = Scale(name="embeddings", unit="MMD", bounds=(0.03, 0.06, MEDIUM_MMD, 0.17, HIGH_MMD))
_ACCURACY = Scale(name="accuracy", unit="points", bounds=(0.005, 0.01, MEDIUM_LOSS, 0.035, HIGH_LOSS))
SCALES = {
    SignalKind.FEATURE: _NUMBERS,
    SignalKind.SCORE: _NUMBERS,
    SignalKind.CLASSES: _CLASSES,
    SignalKind.EMBEDDING: _EMBEDDING,
    SignalKind.ACCURACY: _ACCURACY,
    SignalKind.ESTIMATED_ACCURACY: _ACCURACY,
}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The one size that a table shows of a signal: text, and how large it is among its kind, for sorting."""

    text: str
    weight: float


def headline(finding: SignalFinding, report: DriftReport) -> Headline | None:
    """The size that says most of a signal's kind, None where none was measured.

    Its weight is in units of the kind's largest bound, so that signals of different kinds sort together.
    """
    scale = SCALES[finding.kind]
    if finding.kind is SignalKind.ESTIMATED_ACCURACY:
        if report.estimated_accuracy is None or report.expected_accuracy is None:
            return None
        change = report.estimated_accuracy - report.expected_accuracy
        return Headline(text=scale.text(change), weight=abs(change) / scale.bounds[-1])
    effect = finding.effect
    if effect is None:
        return None
    largest = scale.bounds[-1]
    for value, text, of_largest in (
        (effect.shift_sd, words.sigmas(effect.shift_sd), _NUMBERS.bounds[-1]),
        (effect.mmd, f"MMD {words.figure(effect.mmd)}", _EMBEDDING.bounds[-1]),
        (effect.hellinger, f"Hellinger {words.figure(effect.hellinger)}", _CLASSES.bounds[-1]),
        (effect.shift_rank, f"{words.points(effect.shift_rank)} ranks in 100", 0.3),
        (effect.jsd, f"JSD {words.figure(effect.jsd)}", largest),
        (effect.psi, f"PSI {words.figure(effect.psi)}", largest),
    ):
        if value is not None and math.isfinite(value):
            return Headline(text=text, weight=abs(value) / of_largest)
    return None
