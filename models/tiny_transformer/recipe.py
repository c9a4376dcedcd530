"""Rebuild the language model: phrases, training, export, quantization, bundle. README.md is the model card.

    python -m models.tiny_transformer.recipe                  # all of it; needs torch 2.13.0 and pip's package index
    python -m models.tiny_transformer.recipe --only quantize  # the bundle from fp32/ and phrases.npz; needs neither

Watched on a device are the bytes at four places of the text, not the mean and the spread of all of them, which mix up
how long a text is with how it is written. A byte is 0 where the text has ended, so the first bin of a late place is
the share of texts that are shorter; and byte values tell scripts and letters with accents from plain ones. That finds
texts that are cut, empty, in another script or in capitals. Which language a text is in, such a feature cannot tell:
that is left to the class counts and the scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fleet_protocol.manifest import FeatureReference, Lineage
from models.recipe import VersionRecipe, run_recipe
from models.tiny_transformer.data import (
    CALIBRATION,
    FINAL,
    INPUT,
    LABELS,
    REFERENCE,
    SELECTION,
    TRAIN,
    TRAINING_SHA256,
    from_packages,
    kept,
    save,
)
from quantize.metrics import METRICS
from quantize.pipeline import Request
from quantize.references import uncounted

HERE = Path(__file__).parent
MODEL = "tiny-transformer"
VERSION = "1.0.0"
MAX_DROP = 0.005
WATCHED_PLACES = (1, 16, 32, 64)
LICENCE = (
    "Apache-2.0; data: translated messages of Django 5.2 and Wagtail 6.4 (BSD-3-Clause) and, for measuring only, "
    "Sphinx 8.1.3 (BSD-2-Clause)"
)

_CREATED_AT_NS = 1_778_000_000_000_000_000
_EPOCHS, _SEED = 24, 1


def train() -> bytes:
    """Read the phrases from their packages, write `phrases.npz`, and fit the network. Needs torch."""
    from models.tiny_transformer.train import Training, fit

    parts = from_packages()
    save(parts)
    return fit(parts[TRAIN], Training(epochs=_EPOCHS, seed=_SEED))


def request(fp32: bytes) -> Request:
    """What `quantize` is asked for, from the committed phrases."""
    return Request(
        source=str(RECIPE.fp32),
        fp32=fp32,
        model=MODEL,
        version=VERSION,
        created_at_ns=_CREATED_AT_NS,
        calibration=kept(CALIBRATION),
        selection=kept(SELECTION),
        final=kept(FINAL),
        reference=kept(REFERENCE).inputs,
        metric=METRICS["accuracy"],
        max_drop=MAX_DROP,
        features=watched(),
        labels=LABELS,
        lineage=Lineage(training_data_sha256=TRAINING_SHA256),
        licence=LICENCE,
        description="Which of twenty European languages a short phrase is in: a two-layer transformer over its bytes",
        card=(HERE / "README.md").read_text(encoding="utf-8"),
    )


def watched() -> list[FeatureReference]:
    """The features that a device watches, not counted yet. See above for why these."""
    return [uncounted(f"byte_{place}", "column", INPUT, index=float(place - 1)) for place in WATCHED_PLACES]


RECIPE = VersionRecipe(folder=HERE, version=VERSION, train=train, request=request)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild what `arguments` ask for and print what the bundle promises."""
    return run_recipe((RECIPE,), arguments)


if __name__ == "__main__":
    sys.exit(main())
