"""Rebuild the digits model: data, training, export, quantization, bundles. README.md is the model card.

    python -m models.digits.recipe                  # everything; needs torch 2.13.0, about half a minute
    python -m models.digits.recipe --only quantize  # holdout and bundles from fp32/*.onnx; needs no torch

Three versions are made:
- **1.0.0** was trained on the first 200 training images for 20 epochs: an honest first version, often wrong.
- **1.1.0** was trained on all 800 training images for 60 epochs, each image shifted by up to a pixel.
- **1.2.0** is broken on purpose: `reads_columns_first` below. Its pipeline read every image column by column,
  so training, calibration, golden vectors and expected accuracy all come from transposed images. Each of its
  own checks passes: it loads, it is as fast, its golden vectors hold and its own accuracy is high. On upright
  images, the ones a device sees, it is mostly wrong. Its bundle does not say so, because its makers did not
  know; only outcomes, scores and class counts from devices can tell. It is what a rollout's gates must find.

The result is deterministic: the split, the seeds and the creation times are fixed, and torch runs one thread.
Whether int8 may ship is decided on the selection part; what the manifest promises is measured on the final part.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleet_protocol.manifest import Lineage
from models.digits.data import CALIBRATION, FINAL, LABELS, SELECTION, TRAIN, Digits, split
from quantize.evaluation import measure
from quantize.metrics import METRICS
from quantize.pipeline import Report, Request, quantize_to_bundle

HERE = Path(__file__).parent
HOLDOUT = HERE / "holdout.npz"
MODEL = "digits"
METRIC = METRICS["accuracy"]
MAX_DROP = 0.01
LICENCE = "Apache-2.0; data: UCI Optical Recognition of Handwritten Digits, CC BY 4.0"


@dataclass(frozen=True, kw_only=True)
class VersionRecipe:
    """How one version is made. `images` are the first ones of the training part; `shift` is `train.Training`'s."""

    version: str
    parent: str
    created_at_ns: int
    description: str
    images: int
    epochs: int
    shift: bool
    seed: int
    reads_columns_first: bool = False

    @property
    def fp32(self) -> Path:
        """The exported network."""
        return HERE / "fp32" / f"{self.version}.onnx"

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return HERE / "bundles" / self.version

    def parts(self) -> dict[str, Digits]:
        """The four parts of the data as this version's pipeline read them."""
        parts = split()
        if self.reads_columns_first:  # the deliberate fault of 1.2.0
            parts = {name: digits.transposed() for name, digits in parts.items()}
        return {**parts, TRAIN: parts[TRAIN].head(self.images)}


VERSIONS = (
    VersionRecipe(
        version="1.0.0",
        parent="",
        created_at_ns=1_772_000_000_000_000_000,
        description="Handwritten digits, first version, trained on 200 images",
        images=200,
        epochs=20,
        shift=False,
        seed=1,
    ),
    VersionRecipe(
        version="1.1.0",
        parent="1.0.0",
        created_at_ns=1_774_000_000_000_000_000,
        description="Handwritten digits, trained on 800 images with shifts",
        images=800,
        epochs=60,
        shift=True,
        seed=2,
    ),
    VersionRecipe(
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


def train(recipe: VersionRecipe) -> None:
    """Fit the version's network and write its ONNX file. Needs torch."""
    from models.digits.train import Training, fit

    training = Training(epochs=recipe.epochs, shift=recipe.shift, seed=recipe.seed)
    recipe.fp32.parent.mkdir(exist_ok=True)
    recipe.fp32.write_bytes(fit(recipe.parts()[TRAIN], training))


def quantize(recipe: VersionRecipe, folder: Path) -> Report:
    """Make the version's bundle at `folder` from its ONNX file."""
    parts = {name: digits.samples() for name, digits in recipe.parts().items()}
    return quantize_to_bundle(
        Request(
            source=str(recipe.fp32),
            fp32=recipe.fp32.read_bytes(),
            model=MODEL,
            version=recipe.version,
            created_at_ns=recipe.created_at_ns,
            calibration=parts[CALIBRATION],
            selection=parts[SELECTION],
            final=parts[FINAL],
            reference=parts[TRAIN].inputs,
            metric=METRIC,
            max_drop=MAX_DROP,
            labels=LABELS,
            lineage=Lineage(training_data_sha256=parts[TRAIN].sha256(), parent_version=recipe.parent),
            licence=LICENCE,
            description=recipe.description,
        ),
        folder,
    )


def write_holdout() -> None:
    """Write the final part: `images` uint8 `[n, 8, 8]` and `labels` uint8 `[n]`."""
    final = split()[FINAL]
    np.savez(HOLDOUT, images=final.images, labels=final.labels)


def scores(recipe: VersionRecipe, report: Report) -> str:
    """The version's row of the model card: fp32, as promised in its manifest, and on upright final images."""
    upright, own = split()[FINAL].samples(), recipe.parts()[FINAL].samples()
    variant = report.manifest.variants[0]
    content = (recipe.bundle / "files" / variant.file.sha256).read_bytes()
    figures = (
        measure(recipe.fp32.read_bytes(), own, METRIC).metrics[METRIC.name],
        variant.expected[METRIC.name],
        measure(content, upright, METRIC).metrics[METRIC.name],
    )
    return f"| {recipe.version} | {variant.name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild what `arguments` ask for and print the model card's scores."""
    parser = argparse.ArgumentParser(prog="python -m models.digits.recipe", description="Rebuild the digits model.")
    parser.add_argument("--only", choices=("train", "quantize"), help="one step instead of both")
    only = parser.parse_args(arguments).only
    for recipe in VERSIONS:
        if only != "quantize":
            train(recipe)
        if only != "train":
            shutil.rmtree(recipe.bundle, ignore_errors=True)
            sys.stdout.write(scores(recipe, quantize(recipe, recipe.bundle)) + "\n")
    write_holdout()
    return 0


if __name__ == "__main__":
    sys.exit(main())
