"""How much a drift that was found matters. Pure.

Severity is about size and never about evidence: a large fleet sees shifts that do not matter with certainty. It is
the worst of what follows, and NONE where no drift was found.

| | medium from | high from | why there |
|---|---|---|---|
| mean moved, in standard deviations | 0.3 | 0.8 | between Cohen's small and medium; Cohen's large |
| Hellinger distance | 0.11 | 0.18 | what PSI calls 0.1, "moderate", and 0.25, "major" |
| maximum mean discrepancy, random features | 0.1 | 0.25 | a mean move of the features by as much |
| accuracy lost, known or estimated | 0.02 | 0.05 | one, or two and a half, more wrong answers in fifty |
"""

from __future__ import annotations

from fleet_server.drift.findings import Effect, Severity

MEDIUM_SHIFT_SD, HIGH_SHIFT_SD = 0.3, 0.8
MEDIUM_HELLINGER, HIGH_HELLINGER = 0.11, 0.18
MEDIUM_MMD, HIGH_MMD = 0.1, 0.25
MEDIUM_LOSS, HIGH_LOSS = 0.02, 0.05

_ORDER = (Severity.NONE, Severity.LOW, Severity.MEDIUM, Severity.HIGH)


def severity_of(effect: Effect | None, *, accuracy_loss: float | None = None) -> Severity:
    """The severity of a drift of this size, with this loss of accuracy, where there is one to tell."""
    found = [Severity.LOW]
    if effect is not None:
        found += [
            _level(effect.shift_sd, MEDIUM_SHIFT_SD, HIGH_SHIFT_SD),
            _level(effect.hellinger, MEDIUM_HELLINGER, HIGH_HELLINGER),
            _level(effect.mmd, MEDIUM_MMD, HIGH_MMD),
        ]
    if accuracy_loss is not None and accuracy_loss > 0:
        found.append(_level(accuracy_loss, MEDIUM_LOSS, HIGH_LOSS))
    return worst(found)


def worst(severities: list[Severity]) -> Severity:
    """The highest of them, NONE without any."""
    return max(severities, key=_ORDER.index, default=Severity.NONE)


def _level(size: float | None, medium: float, high: float) -> Severity:
    if size is None:
        return Severity.LOW
    return Severity.HIGH if abs(size) >= high else Severity.MEDIUM if abs(size) >= medium else Severity.LOW
