"""The data in parts, as committed: features in one byte each, so that quantizing and scoring need no espeak-ng.

| part | seconds | for |
|---|---|---|
| train | 24,000, not committed | fitting the weights |
| reference | its first 1,200 | the features' reference distributions |
| calibration | 480 | the int8 ranges |
| selection | 1,200 | deciding which variants may ship |
| final | 1,800 | the scores that are reported; it is `holdout.npz` |
| clean | 600 | the words of the final voices alone, at full scale: what MLPerf Tiny's own model is measured with |

The voices of train (and so reference), calibration, selection and final (and so clean) are disjoint; clean and final
share voices and words. A stored feature is `offset + step * byte` with the steps and offsets of its coefficient:
what a model is measured with are these rounded features, the same everywhere. The files' digests are pinned, so a part
that was made by another espeak-ng is an error here and not a score that cannot be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.keywords.corpus import Heard, heard
from models.keywords.features import coefficients_of
from models.keywords.voices import Part
from quantize.data import Samples

INPUT = "features"
HERE = Path(__file__).parent
HOLDOUT = HERE / "holdout.npz"
TRAIN_SECONDS = 24_000
TRAINING_DATA_SHA256 = "079e85657eebc781b74425d3f71f48164ab17bbf753d9438087a2340d04419f9"

_OFFSETS = np.array([-47.0] + [0.0] * 9, dtype=np.float32)
_STEPS = np.array([0.6, 0.14] + [0.1] * 8, dtype=np.float32)
_BYTE = 127


@dataclass(frozen=True, kw_only=True)
class Listened:
    """Features float32 `[n, 49, 10]`, and the rest as in `corpus.Heard`."""

    features: NDArray[np.float32]
    labels: NDArray[np.uint8]
    snr_db: NDArray[np.int8]
    held_out: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CommittedPart:
    """The first `count` scenes of a part of the corpus, in `file`; `sha256` is that of its samples."""

    part: Part
    count: int
    file: str
    sha256: str
    clean: bool = False

    @property
    def path(self) -> Path:
        """The npz: `features` int8 `[n, 49, 10]`, `steps` and `offsets` float32 `[10]`, `labels` uint8 `[n]`,
        `snr_db` int8 `[n]` and `held_out` bool `[n]`, as in `corpus.Heard`.
        """
        return HERE / self.file

    def speak(self) -> dict[str, NDArray[np.generic]]:
        """The arrays of the npz, made again. Raises RuntimeError without espeak-ng."""
        made = heard(self.part, self.count, clean=self.clean)
        return {
            "features": stored(coefficients_of(made.log_mels)),
            "steps": _STEPS,
            "offsets": _OFFSETS,
            "labels": made.labels,
            "snr_db": made.snr_db,
            "held_out": made.held_out,
        }


PARTS = {
    "reference": CommittedPart(
        part=Part.TRAIN,
        count=1_200,
        file="reference.npz",
        sha256="20b591c043e54a87de691d35e683adff23c97bb2fbf7c93c1961166d008d3bbc",
    ),
    "calibration": CommittedPart(
        part=Part.CALIBRATION,
        count=480,
        file="calibration.npz",
        sha256="8ee1b0444d524547ac7821df70a422c9fcaaba97776c70b88be6f29607a40b8d",
    ),
    "selection": CommittedPart(
        part=Part.SELECTION,
        count=1_200,
        file="selection.npz",
        sha256="5f970aaec2cf7c9acfb724f3f8cf79e526c028f06c20bfacd69d32479679a5bf",
    ),
    "final": CommittedPart(
        part=Part.FINAL,
        count=1_800,
        file=HOLDOUT.name,
        sha256="8d7eb323b83d8735b7e98418811e8cb97781a0bd13390873bd891725559bce34",
    ),
    "clean": CommittedPart(
        part=Part.FINAL,
        count=600,
        file="clean.npz",
        sha256="797a11d62397d89bb79a115a42255ba000fffea5439093247e27bc4efab15450",
        clean=True,
    ),
}


def part(name: str) -> Samples:
    """A committed part: the input `features` FP32 `[n, 1, 49, 10]`, and labels.

    For MLPerf Tiny's model reshape it to `[n, 49, 10, 1]` and call it `input_1`; the classes have its order.
    Raises KeyError for another name, RuntimeError when the file is not the one that was made.
    """
    samples = samples_of(read(name))
    if samples.sha256() != PARTS[name].sha256:
        raise RuntimeError(
            f"{PARTS[name].path} is not the part that the scores were measured on (its digest is {samples.sha256()}): "
            "check it out again, or, after a deliberate change, pin its digest in models/keywords/data.py"
        )
    return samples


def read(name: str) -> Listened:
    """A committed part with the noise of each of its seconds."""
    with np.load(PARTS[name].path, allow_pickle=False) as archive:
        features = archive["offsets"] + archive["steps"] * archive["features"].astype(np.float32)
        return Listened(
            features=features.astype(np.float32),
            labels=archive["labels"],
            snr_db=archive["snr_db"],
            held_out=archive["held_out"],
        )


def stored(features: NDArray[np.float32]) -> NDArray[np.int8]:
    """Features `[..., 10]` in one byte each; what is out of a byte's range is its nearest end."""
    stored_features: NDArray[np.int8] = np.clip(np.round((features - _OFFSETS) / _STEPS), -_BYTE, _BYTE).astype(np.int8)
    return stored_features


def train() -> Heard:
    """The training part, from the cache or made again: minutes.

    Raises RuntimeError without espeak-ng, or when it speaks otherwise than the one whose speech the lineage names.
    """
    made = heard(Part.TRAIN, TRAIN_SECONDS)
    if digest_of(made) != TRAINING_DATA_SHA256:
        raise RuntimeError(
            f"this espeak-ng or numpy makes other training speech (its digest is {digest_of(made)}): take espeak-ng "
            "1.51, or pin the digest in models/keywords/data.py, make the parts again and score the model anew"
        )
    return made


def samples_of(made: Listened) -> Samples:
    """The features and labels as `quantize` takes them."""
    return Samples(inputs={INPUT: made.features[:, None]}, labels=made.labels.astype(np.int64))


def digest_of(made: Heard) -> str:
    """The digest that names training data."""
    return Samples(inputs={"log_mels": made.log_mels}, labels=made.labels).sha256()


def write_parts() -> dict[str, str]:
    """Make every committed part again and return the digests of all parts by name, train included.

    Raises RuntimeError without espeak-ng.
    """
    for committed in PARTS.values():
        np.savez_compressed(committed.path, allow_pickle=False, **committed.speak())
    return {
        **{name: samples_of(read(name)).sha256() for name in PARTS},
        "train": digest_of(heard(Part.TRAIN, TRAIN_SECONDS)),
    }
