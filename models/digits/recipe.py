"""Rebuild the digits model: data, training, export, quantization, bundles. README.md is the model card.

    make models NAME=digits                                  # everything
    make models NAME=digits MODEL_ARGS="--only quantize"     # bundles from fp32/*.onnx; needs no torch

Three versions are made:
- **1.0.0** was trained on the first 200 training images for 20 epochs: an honest first version, often wrong.
- **1.1.0** was trained on all 800 training images for 60 epochs, each image shifted by up to a pixel.
- **1.2.0** is broken on purpose: `reads_columns_first` below. Its pipeline read every image column by column,
  so training, calibration, golden vectors and expected accuracy all come from transposed images. Each of its
  own checks passes: it loads, it is as fast, its golden vectors hold and its own accuracy is high. On upright
  images, the ones a device sees, it is mostly wrong. Its bundle does not say so, because its makers did not
  know; only outcomes, scores and class counts from devices can tell. It is what a rollout's gates must find.

Weights are deterministic: the split, the seeds and the creation times are fixed, and torch runs one thread. Variants
are chosen on the selection part, by what is fastest where the recipe runs; what the manifest promises is measured on
the final part.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleet_protocol.manifest import Lineage
from models.digits.data import CALIBRATION, FINAL, LABELS, SELECTION, TRAIN, Digits, split
from models.recipe import VersionRecipe, run_recipe
from quantize.pipeline import Request

HERE = Path(__file__).parent
HOLDOUT = HERE / "holdout.npz"
MAX_DROP = 0.005
LICENCE = "Apache-2.0; data: UCI Optical Recognition of Handwritten Digits, CC BY 4.0"


@dataclass(frozen=True, kw_only=True)
class DigitsVersion:
    """What one version is made of. `images` are the first ones of the training part; `shift` is `train.Training`'s."""

    version: str
    parent: str
    created_at_ns: int
    description: str
    images: int
    epochs: int
    shift: bool
    seed: int
    reads_columns_first: bool = False

    def parts(self) -> dict[str, Digits]:
        """The four parts of the data as this version's pipeline read them."""
        parts = split()
        if self.reads_columns_first:  # the deliberate fault of 1.2.0
            parts = {name: digits.transposed() for name, digits in parts.items()}
        return {**parts, TRAIN: parts[TRAIN].head(self.images)}

    def train(self) -> bytes:
        """Fit the version's network. Needs torch."""
        from models.digits.train import Training, fit

        return fit(self.parts()[TRAIN], Training(epochs=self.epochs, shift=self.shift, seed=self.seed))

    def request(self, fp32: bytes) -> Request:
        """What the version's bundle is made from."""
        parts = {name: digits.samples() for name, digits in self.parts().items()}
        return Request(
            source=f"digits/fp32/{self.version}.onnx",
            fp32=fp32,
            model="digits",
            version=self.version,
            created_at_ns=self.created_at_ns,
            calibration=parts[CALIBRATION],
            selection=parts[SELECTION],
            final=parts[FINAL],
            reference=parts[TRAIN].inputs,
            max_drop=MAX_DROP,
            labels=LABELS,
            lineage=Lineage(training_data_sha256=parts[TRAIN].sha256(), parent_version=self.parent),
            licence=LICENCE,
            description=self.description,
            card=(HERE / "README.md").read_text(),
        )

    @property
    def recipe(self) -> VersionRecipe:
        """The version as the zoo's driver takes it."""
        return VersionRecipe(folder=HERE, version=self.version, train=self.train, request=self.request)


VERSIONS = (
    DigitsVersion(
        version="1.0.0",
        parent="",
        created_at_ns=1_772_000_000_000_000_000,
        description="Handwritten digits, first version, trained on 200 images",
        images=200,
        epochs=20,
        shift=False,
        seed=1,
    ),
    DigitsVersion(
        version="1.1.0",
        parent="1.0.0",
        created_at_ns=1_774_000_000_000_000_000,
        description="Handwritten digits, trained on 800 images with shifts",
        images=800,
        epochs=60,
        shift=True,
        seed=2,
    ),
    DigitsVersion(
        version="1.2.0",
        parent="1.1.0",
        created_at_ns=1_776_000_000_000_000_000,
        description="Handwritten digits, retrained on 800 images with shifts, new data loader",
        images=800,
        epochs=60,
        shift=True,
        seed=3,
        reads_columns_first=True,
    ),
)


def write_holdout() -> None:
    """Write the final part: `images` uint8 `[n, 8, 8]` and `labels` uint8 `[n]`."""
    final = split()[FINAL]
    np.savez(HOLDOUT, images=final.images, labels=final.labels)


if __name__ == "__main__":
    write_holdout()
    sys.exit(run_recipe([version.recipe for version in VERSIONS]))
