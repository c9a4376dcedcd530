"""Rebuild the keyword model: speech, training, export, quantization, bundle. README.md is the model card.

    python -m models.keywords.recipe                  # everything; needs espeak-ng and torch 2.13.0, 15 minutes
    python -m models.keywords.recipe --only quantize  # the bundle from fp32/*.onnx; needs neither
    python -m models.keywords.recipe --scores         # the model card's tables
    python -m models.keywords.recipe --parts          # the committed parts of the data again; needs espeak-ng

Which variants may ship is decided on the selection part; what the manifest promises is measured on the final part.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.manifest import FeatureReference, Lineage
from models.keywords.corpus import CLEAN_DB, EVAL_SNRS_DB
from models.keywords.data import HERE, INPUT, TRAINING_DATA_SHA256, part, read, train, write_parts
from models.keywords.features import COEFFICIENTS, FRAMES
from models.keywords.voices import LABELS, UNKNOWN
from models.recipe import VersionRecipe, run_recipe
from quantize.evaluation import loaded, run_all
from quantize.metrics import METRICS, predicted_classes
from quantize.pipeline import Request
from quantize.references import uncounted

MODEL = "keywords"
MAX_DROP = 0.005
LICENCE = "Apache-2.0; trained on speech synthesised by espeak-ng"
_CREATED_AT_NS = 1_790_000_000_000_000_000
_MIDDLE_FRAME = FRAMES // 2


def watched() -> list[FeatureReference]:
    """What a microphone and a room can drift in.

    `loudness` is the mean of all coefficients, nine tenths of it coefficient 0; `dynamics` their deviation, which is
    large where speech stands out of silence; `background` and `middle` are coefficient 0 of the first and the middle
    frame, mostly the room and mostly the word; `background_tilt` is coefficient 1 of the first frame: low sounds
    against high ones; `change` is how much neighbouring frames and coefficients differ.
    """
    return [
        uncounted("loudness", "mean", INPUT),
        uncounted("dynamics", "std", INPUT),
        uncounted("change", "sharpness", INPUT),
        uncounted("background", "column", INPUT, index=0.0),
        uncounted("background_tilt", "column", INPUT, index=1.0),
        uncounted("middle", "column", INPUT, index=float(_MIDDLE_FRAME * COEFFICIENTS)),
    ]


def fit_network() -> bytes:
    """Make the training speech, fit the network on it and return its ONNX file. Needs espeak-ng and torch."""
    from models.keywords.train import Training, fit

    return fit(train(), Training())


def request(fp32: bytes) -> Request:
    """What `quantize` is asked for, all of it from committed files."""
    return Request(
        source=str(VERSION.fp32),
        fp32=fp32,
        model=MODEL,
        version=VERSION.version,
        created_at_ns=_CREATED_AT_NS,
        calibration=part("calibration"),
        selection=part("selection"),
        final=part("final"),
        reference=part("reference").inputs,
        metric=METRICS["accuracy"],
        max_drop=MAX_DROP,
        features=watched(),
        labels=LABELS,
        lineage=Lineage(training_data_sha256=TRAINING_DATA_SHA256),
        licence=LICENCE,
        description="Ten spoken English keywords, silence and unknown words in one second of 16 kHz audio",
        card=(HERE / "README.md").read_text(encoding="utf-8"),
    )


VERSION = VersionRecipe(folder=HERE, version="1.0.0", train=fit_network, request=request)


def answers(model: Path, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes `[n]` that the ONNX file `model` answers to `features` `[n, 1, 49, 10]`, in the agent's runtime."""
    with loaded(model.read_bytes()) as runnable:
        return predicted_classes(run_all(runnable, {INPUT: features}))


def scores() -> list[str]:
    """The model card's tables of the fp32 network on the final part: accuracy, and what was taken for what."""
    final = read("final")
    found = answers(VERSION.fp32, part("final").inputs[INPUT])
    rows = {"all": np.ones(len(final.labels), dtype=bool)}
    for snr_db in EVAL_SNRS_DB:
        rows["no noise" if snr_db == CLEAN_DB else f"{snr_db} dB"] = final.snr_db == snr_db
    rows["unknown words that training heard"] = (final.labels == UNKNOWN) & ~final.held_out
    rows["unknown words that it never heard"] = final.held_out
    lines = ["| | seconds | accuracy |", "|---|---|---|"]
    for name, chosen in rows.items():
        lines.append(f"| {name} | {chosen.sum():,} | {(found == final.labels)[chosen].mean():.3f} |")
    table = np.zeros((len(LABELS), len(LABELS)), dtype=int)
    np.add.at(table, (final.labels, found), 1)
    lines += ["", "| said | " + " | ".join(LABELS) + " |", "|---|" + "---|" * len(LABELS)]
    for label, row in zip(LABELS, table, strict=True):
        lines.append(f"| {label} | " + " | ".join(str(count or "·") for count in row) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild what `arguments` ask for, or print the card's scores."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--scores"]:
        sys.stdout.write("\n".join(scores()) + "\n")
        return 0
    if given == ["--parts"]:
        for name, digest in write_parts().items():
            sys.stdout.write(f"{name} {digest}\n")
        return 0
    return run_recipe([VERSION], given)


if __name__ == "__main__":
    sys.exit(main())
