"""Rebuild the bearing model: simulation, training, export, quantization, bundle. README.md is the model card.

    python -m models.bearing.recipe                  # everything; needs torch 2.13.0, about a minute and a half
    python -m models.bearing.recipe --only quantize  # holdout and bundle from fp32/*.onnx; needs no torch

Watched for drift: the mean and the spread of a spectrum, and its first two harmonics of the shaft. A shift of those
two on one machine is unbalance or misalignment, which the reconstruction error tells badly across unequal machines.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from fleet_protocol.manifest import Lineage
from models.bearing.data import CALIBRATION, SELECTION, TRAIN, Vibration, holdout, part, write_holdout
from models.bearing.features import SHAFT_1X, SHAFT_2X
from models.recipe import VersionRecipe, run_recipe
from quantize.metrics import METRICS
from quantize.pipeline import Request
from quantize.references import uncounted

HERE = Path(__file__).parent
MODEL = "bearing"
VERSION = "1.0.0"
CREATED_AT_NS = 1_778_000_000_000_000_000
MAX_DROP = 0.005
SEED = 1
FEATURES = (
    uncounted("mean", "mean", "spectrum"),
    uncounted("std", "std", "spectrum"),
    uncounted("shaft_1x", "column", "spectrum", index=float(SHAFT_1X)),
    uncounted("shaft_2x", "column", "spectrum", index=float(SHAFT_2X)),
)

simulated = cache(part)


def train() -> bytes:
    """The trained network as ONNX. Needs torch."""
    from models.bearing.train import Training, fit

    return fit(simulated(TRAIN), Training(seed=SEED))


def request(fp32: bytes) -> Request:
    """What `quantize` is asked for."""
    parts: dict[str, Vibration] = {name: simulated(name) for name in (TRAIN, CALIBRATION, SELECTION)}
    return Request(
        source=str(RECIPE.fp32),
        fp32=fp32,
        model=MODEL,
        version=VERSION,
        created_at_ns=CREATED_AT_NS,
        calibration=parts[CALIBRATION].samples(),
        selection=parts[SELECTION].samples(),
        final=holdout().samples(),
        reference=parts[TRAIN].samples().inputs,
        task="anomaly",
        metric=METRICS["auc"],
        max_drop=MAX_DROP,
        features=FEATURES,
        lineage=Lineage(training_data_sha256=parts[TRAIN].samples().sha256()),
        licence="Apache-2.0; data: simulated by this recipe",
        description="Machine vibration: reconstruction error of a spectrum, high when a bearing or shaft is faulty",
        card=(HERE / "README.md").read_text(encoding="utf-8"),
        seed=SEED,
    )


RECIPE = VersionRecipe(folder=HERE, version=VERSION, train=train, request=request)


if __name__ == "__main__":
    write_holdout()
    sys.exit(run_recipe((RECIPE,)))
