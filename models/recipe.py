"""The steps every recipe has: train an fp32 network, quantize it to a bundle, and print the model card's scores.

    python -m models.NAME.recipe                        # everything; needs the `models` extra
    python -m models.NAME.recipe --only quantize        # bundles from fp32/*.onnx; needs no torch
    python -m models.NAME.recipe --version 1.0.0        # one version of several

What is rebuilt is deterministic on one machine: seeds, splits and creation times are fixed. Another CPU may measure
other latencies and so ship other variants of the same fp32 file; which ones is in the bundle's report.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize.pipeline import Report, Request, quantize_to_bundle

TRAIN, QUANTIZE = "train", "quantize"


@dataclass(frozen=True, kw_only=True)
class VersionRecipe:
    """How one version of a model is made.

    `folder` is the model's; `train` fits the network and answers the bytes of its ONNX file (it may import torch);
    `request` turns those bytes into what `quantize` is asked for.
    """

    folder: Path
    version: str
    train: Callable[[], bytes]
    request: Callable[[bytes], Request]

    @property
    def fp32(self) -> Path:
        """The exported network."""
        return self.folder / "fp32" / f"{self.version}.onnx"

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.folder / "bundles" / self.version

    def quantize(self, folder: Path) -> Report:
        """Make the version's bundle at `folder` from its ONNX file."""
        return quantize_to_bundle(self.request(self.fp32.read_bytes()), folder)


def run_recipe(recipes: Sequence[VersionRecipe], arguments: Sequence[str] | None = None) -> int:
    """Rebuild what the command line `arguments` ask for and print the promised metrics of each variant."""
    parser = argparse.ArgumentParser(description="Rebuild a model of the zoo.")
    parser.add_argument("--only", choices=(TRAIN, QUANTIZE), help="one step instead of both")
    parser.add_argument("--version", choices=[recipe.version for recipe in recipes], help="one version instead of all")
    options = parser.parse_args(arguments)
    for recipe in recipes:
        if options.version not in (None, recipe.version):
            continue
        if options.only != QUANTIZE:
            recipe.fp32.parent.mkdir(exist_ok=True)
            recipe.fp32.write_bytes(recipe.train())
        if options.only != TRAIN:
            shutil.rmtree(recipe.bundle, ignore_errors=True)
            for variant in recipe.quantize(recipe.bundle).manifest.variants:
                figures = ", ".join(f"{name} {value:.4f}" for name, value in variant.expected.items())
                sys.stdout.write(f"{recipe.version} {variant.name}: {figures}\n")
    return 0
