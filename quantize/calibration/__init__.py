"""What every activation of a prepared model reaches on calibration samples: one pass, then ranges of four kinds.

`ranges` reads a range off a histogram (pure), `observer` gathers statistics of one tensor (pure), `activations` runs a
model so that every tensor comes out, `calibrated` joins them.
"""

from quantize.calibration.activations import Activations
from quantize.calibration.calibrated import (
    MAX_CALIBRATION_SAMPLES,
    Calibration,
    calibrate,
    calibration_key,
    chosen_samples,
)

__all__ = [
    "MAX_CALIBRATION_SAMPLES",
    "Activations",
    "Calibration",
    "calibrate",
    "calibration_key",
    "chosen_samples",
]
