"""One device that looks at digits, drifting or not: from images through the device's own code to the product's verdict.

The model is the zoo's digits 1.1.0. Every run deals the data anew, so that a false-alarm rate is over references too:
- 497 of the 997 images that the model was not fitted to count its classes and scores, as many as in the shipped bundle;
- 800 of those and of the training images together count features and random features (`quantize.references`);
- the device sees images of the other 500, without putting back.
What the device sees goes through `edge_agent.telemetry.series`, becomes a window, and is encoded and decoded. Pixels
are from 0 to 16; a noise of 0.5 is of the range.

The columns are what one would compute with the raw values at hand, which no server has: each the p-value of one test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp

from edge_agent.telemetry.random_features import random_features
from edge_agent.telemetry.series import Series, SeriesKey
from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import OutboxStatus, Resources, Window, decode, encode
from fleet_server.drift.findings import DriftReport, Population
from fleet_server.drift.report import Comparison, compare
from fleet_server.drift.signals import reference_of
from fleet_server.drift.tallies import Tally, span_of
from fleet_server.statistics.divergences import ks_distance, ks_p_value
from models.digits.data import CALIBRATION, FINAL, SELECTION, TRAIN, split
from quantize.data import Inputs
from quantize.evaluation import loaded, run_all
from quantize.references import class_counts, count_features, reference_sums, score_reference

BUNDLE = Path(__file__).parents[2] / "models" / "digits" / "bundles" / "1.1.0"
ANSWER_REFERENCE, INPUT_REFERENCE = 497, 800
RANGE, NOISE, DIMMED = 16.0, 0.5, 0.85
PERMUTATIONS = 199
_HOUR_NS = 3_600 * 10**9
_START_NS = 1_774_000_000_000_000_000 // _HOUR_NS * _HOUR_NS

Images = NDArray[np.float32]
Floats = NDArray[np.float64]


def _none(images: Images, _: np.random.Generator) -> Images:
    return images


def _noise(images: Images, random: np.random.Generator) -> Images:
    half = _half(images, random)
    images[half] += random.normal(0.0, NOISE * RANGE, images[half].shape).astype(np.float32)
    return images


def _rolled(images: Images, random: np.random.Generator) -> Images:
    half = _half(images, random)
    images[half] = np.roll(images[half], 1, axis=3)
    return images


def _dimmed(images: Images, _: np.random.Generator) -> Images:
    return images * np.float32(DIMMED)


def _half(images: Images, random: np.random.Generator) -> NDArray[np.int64]:
    return random.permutation(len(images))[: len(images) // 2]


NONE, CLASS_GONE = "none", "class 0 gone"
SHIFTS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    NONE: _none,
    "half with noise 0.5": _noise,
    CLASS_GONE: _none,
    "half rolled 1 px": _rolled,
    "brightness x 0.85": _dimmed,
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Images `[n, 1, 8, 8]` and the model's probabilities for them `[n, 10]`."""

    images: Images
    answers: Floats


class Digits:
    """The data, the model's answers to it, and the shipped manifest whose references each run counts anew."""

    def __init__(self) -> None:
        parts = split()
        unseen = [parts[name] for name in (CALIBRATION, SELECTION, FINAL)]
        self._training = parts[TRAIN].tensor()
        self._unseen = np.concatenate([part.tensor() for part in unseen])
        self._labels = np.concatenate([part.labels for part in unseen])
        self._shipped = read_manifest(BUNDLE)
        # the variant that the shipped references are of
        digest = self._shipped.variants[0].file.sha256
        self._content = next((BUNDLE / "files").glob(f"{digest}*")).read_bytes()
        self._answers = self.answers(self._unseen)

    def answers(self, images: Images) -> Floats:
        """The model's probabilities `[n, 10]`."""
        inputs: Inputs = {self._shipped.inputs[0].name: images}
        with loaded(self._content) as model:
            return np.asarray(run_all(model, inputs)[self._shipped.outputs[0].name], dtype=np.float64)

    def deal(self, seed: int) -> Deal:
        """The data of one run."""
        random = np.random.default_rng(seed)
        order = random.permutation(len(self._unseen))
        known, free = order[:ANSWER_REFERENCE], order[ANSWER_REFERENCE:]
        inputs = np.concatenate([self._training, self._unseen[known]])
        inputs = inputs[random.permutation(len(inputs))[:INPUT_REFERENCE]]
        name = self._shipped.inputs[0].name
        manifest = replace(
            self._shipped,
            features=count_features(self._shipped.features, {name: inputs}, self._shipped.inputs),
            classes=class_counts(self._answers[known]),
            score=score_reference(self._answers[known].max(axis=1)),
            random_features=reference_sums(name, inputs),
        )
        reference = Seen(images=inputs, answers=self._answers[known])
        return Deal(digits=self, manifest=manifest, reference=reference, free=free, random=random)

    def unseen(self, places: NDArray[np.int64]) -> tuple[Images, NDArray[np.uint8]]:
        """Images and labels of places among the unseen ones."""
        return self._unseen[places], self._labels[places]


@dataclass(frozen=True, kw_only=True)
class Deal:
    """One run: the manifest with its references, the raw data behind them, and the images a device may see."""

    digits: Digits
    manifest: Manifest
    reference: Seen
    free: NDArray[np.int64]
    random: np.random.Generator

    def seen(self, shift: str, count: int) -> Seen:
        """What a device sees of `count` images under a shift."""
        images, labels = self.digits.unseen(self.random.permutation(self.free))
        if shift == CLASS_GONE:
            images = images[labels != 0]
        images = SHIFTS[shift](images[:count].copy(), self.random)
        return Seen(images=images, answers=self.digits.answers(images))


def window_of(manifest: Manifest, seen: Seen) -> Window:
    """The window that a device sends of what it saw, as the server reads it."""
    series = Series(SeriesKey(manifest.model, manifest.version, manifest.variants[0].name, "main"))
    series.watch(
        tuple(manifest.features), manifest.score, confidence=manifest.confidence, embedding=manifest.random_features
    )
    classes, scores = seen.answers.argmax(axis=1), seen.answers.max(axis=1)
    for winner, score in zip(classes.tolist(), scores.tolist(), strict=True):
        series.samples.append((100.0, 1.0, 1, (winner,), (score,)))
    series.absorb()
    series.absorb_inputs({manifest.inputs[0].name: seen.images})
    made = series.close_window(
        start_ns=_START_NS, end_ns=_START_NS + _HOUR_NS, resources=Resources(), outbox=OutboxStatus()
    )
    return decode(Window, encode(made(device="camera-1", boot_id="00000000-00000001", sequence=1)))


def report_of(manifest: Manifest, window: Window, *, alpha: float) -> DriftReport:
    """What the product says of one device's window against the reference."""
    tally = Tally(reference_of(manifest), step_ns=_HOUR_NS, unit_of=span_of).add_all([window])
    seen = Population(
        model=manifest.model,
        version=manifest.version,
        device=window.device,
        start_ns=window.start_ns,
        end_ns=window.end_ns,
        devices=1,
        windows=1,
        values=window.count,
    )
    expected = Population(model=manifest.model, version=manifest.version, is_reference=True)
    return compare(
        Comparison(seen=tally, expected=None, seen_population=seen, expected_population=expected), alpha=alpha
    )


COLUMNS = ("raw-score KS", "64 bins or fewer", "hard-label chi2", "random-feature MMD")


def column_p_values(deal: Deal, seen: Seen) -> dict[str, float]:
    """The p-value of each column, from the raw values of both sides."""
    reference, manifest = deal.reference, deal.manifest
    scores, expected = seen.answers.max(axis=1), reference.answers.max(axis=1)
    assert manifest.score is not None
    sketch = BinSketch(manifest.score.edges)
    sketch.record_many(np.clip(scores, sketch.edges[0], sketch.edges[-1]))
    shares, known = sketch.bins / len(scores), np.array(manifest.score.counts) / len(expected)
    table = np.stack([np.bincount(side.answers.argmax(axis=1), minlength=10) for side in (seen, reference)])
    table = table[:, table.any(axis=0)]
    return {
        COLUMNS[0]: float(ks_2samp(scores, expected).pvalue),
        COLUMNS[1]: ks_p_value(ks_distance(shares, known), n=len(scores), m=len(expected)),
        COLUMNS[2]: float(chi2_contingency(table, correction=False).pvalue),
        COLUMNS[3]: _mmd_p_value(deal, seen),
    }


def _mmd_p_value(deal: Deal, seen: Seen) -> float:
    """By exchanging samples."""
    rule = deal.manifest.random_features
    assert rule is not None
    both = random_features(rule, np.concatenate([seen.images, deal.reference.images])).astype(np.float64)
    n, total = len(seen.images), len(both)
    first = np.zeros((PERMUTATIONS + 1, total))
    first[0, :n] = 1.0
    for row in first[1:]:
        row[deal.random.permutation(total)[:n]] = 1.0
    sums = first @ both
    apart = sums / n - (both.sum(axis=0) - sums) / (total - n)
    lengths = (apart**2).sum(axis=1)
    return float((lengths >= lengths[0] * (1 - 1e-9)).mean())
