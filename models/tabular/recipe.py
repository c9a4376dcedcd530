"""Rebuild the tabular model: training, conversion, bundle. README.md is the model card.

    python -m models.tabular.recipe                  # everything; needs the `models` extra, a few seconds
    python -m models.tabular.recipe --only quantize  # holdout and bundle from fp32/*.onnx; needs scikit-learn alone

Every column is watched for drift by its name: thirty numbers a row are few enough.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_protocol.manifest import Lineage
from models.recipe import VersionRecipe, run_recipe
from models.tabular.data import CALIBRATION, COLUMNS, FINAL, LABELS, SELECTION, TRAIN, split, write_holdout
from quantize.metrics import METRICS
from quantize.pipeline import Request
from quantize.references import uncounted

HERE = Path(__file__).parent
MODEL = "tabular"
VERSION = "1.0.0"
CREATED_AT_NS = 1_778_000_000_000_000_000
SEED = 1
FEATURES = tuple(uncounted(name, "column", "columns", index=float(place)) for place, name in enumerate(COLUMNS))


def train() -> bytes:
    """The trained trees as ONNX. Needs skl2onnx."""
    from models.tabular.train import Training, fit

    return fit(split()[TRAIN], Training(seed=SEED))


def request(fp32: bytes) -> Request:
    """What `quantize` is asked for."""
    parts = {name: table.samples() for name, table in split().items()}
    return Request(
        source=str(RECIPE.fp32),
        fp32=fp32,
        model=MODEL,
        version=VERSION,
        created_at_ns=CREATED_AT_NS,
        calibration=parts[CALIBRATION],
        selection=parts[SELECTION],
        final=parts[FINAL],
        reference=parts[TRAIN].inputs,
        metric=METRICS["auc"],
        features=FEATURES,
        labels=LABELS,
        lineage=Lineage(training_data_sha256=parts[TRAIN].sha256()),
        licence="Apache-2.0; data: UCI Breast Cancer Wisconsin (Diagnostic), CC BY 4.0",
        description="Gradient-boosted trees on thirty columns: benign or malignant",
        card=(HERE / "README.md").read_text(encoding="utf-8"),
        seed=SEED,
    )


RECIPE = VersionRecipe(folder=HERE, version=VERSION, train=train, request=request)


if __name__ == "__main__":
    write_holdout()
    sys.exit(run_recipe((RECIPE,)))
