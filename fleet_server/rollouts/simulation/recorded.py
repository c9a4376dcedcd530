"""Recorded telemetry as simulated devices: what each device of the incumbent did, read from a model's series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fleet_server.errors import InvalidRequestError
from fleet_server.rollouts.simulation.world import RecordedDevices, WorldSettings

MIN_DEVICES = 2
"""Recorded devices from which on a fleet is drawn: one has no spread."""
_SHRINK = 20.0
"""Events of the fleet's rate that each device is given, so that a few calls without an error are not a rate of 0."""


def recorded_devices(points: Iterable[Mapping[str, Any]], *, hours: float) -> RecordedDevices:
    """The devices in `points` of a series by device (`GET models/MODEL/metrics?group_by=device`) over `hours`.

    A device without outcomes takes the fleet's accuracy, or the synthetic one where nobody has any. Raises
    InvalidRequestError where fewer than MIN_DEVICES answered.
    """
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for point in points:
        calls, p95_us = float(point["count"] or 0), point.get("p95_us")
        of_device = sums[str(point["device"])]
        values = (calls, point["errors"], point["correct"], point["wrong"], calls * np.log(p95_us) if p95_us else 0.0)
        for place, value in enumerate(values):
            of_device[place] += float(value or 0)
    table = np.array([row for row in sums.values() if row[0] > 0 and row[4] > 0]).reshape(-1, 5)
    if len(table) < MIN_DEVICES:
        raise InvalidRequestError(
            f"replay: {len(table)} devices answered calls with this version in the last {hours:g} hours, at least "
            f"{MIN_DEVICES} are needed: name a version that ran, or leave --replay out"
        )
    count, errors, correct, wrong, weighted_log_p95 = table.T
    outcomes, assumed = correct + wrong, WorldSettings()
    middle = (assumed.wrong_rate_low + assumed.wrong_rate_high) / 2
    fleet_wrong = float(wrong.sum() / outcomes.sum()) if outcomes.sum() else middle
    return RecordedDevices(
        calls_per_hour=(count + errors) / hours,
        error_rate=(errors + _SHRINK * errors.sum() / (count + errors).sum()) / (count + errors + _SHRINK),
        wrong_rate=(wrong + _SHRINK * fleet_wrong) / (outcomes + _SHRINK),
        outcome_share=np.minimum(outcomes / count, 1.0),
        p95_us=np.exp(weighted_log_p95 / count),
    )
