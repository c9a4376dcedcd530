"""Simulated fleets for the drift tests: a bundle's reference, devices that differ, and their windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.telemetry.random_features import whole_sums
from fleet_protocol.bins import BinSketch, quantile_edges
from fleet_protocol.manifest import (
    Artifact,
    FeatureReference,
    Manifest,
    RandomFeatureReference,
    ScoreReference,
    TensorSpec,
    Variant,
)
from fleet_protocol.messages import Window
from fleet_server.drift.evidence import EmbeddingSums
from quantize.references import reference_sums

S = 1_000_000_000
T0_NS = 1_750_000_000 * S
MODEL, VERSION = "digits", "1.0.0"
_CLASSES = 6
ALPHA = 0.05


def allowed(runs: int) -> float:
    """The share of alarms that a rate of ALPHA exceeds in one of forty times."""
    return ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def manifest(features: dict[str, NDArray[np.float64]], classes: Sequence[int] = (), **changes: object) -> Manifest:
    """A manifest whose references are counted from these values."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1, 1])
    artifact = Artifact(sha256="0" * 64, size_bytes=1)
    references = []
    for name, values in features.items():
        sketch = BinSketch(quantile_edges(values))
        sketch.record_many(values)
        references.append(
            FeatureReference(
                name=name, extractor="mean", input="x", edges=sketch.edges.tolist(), counts=sketch.bins.tolist()
            )
        )
    score = changes.pop("score", None)
    assert score is None or isinstance(score, ScoreReference)
    return Manifest(
        model=MODEL,
        version=str(changes.pop("version", VERSION)),
        created_at_ns=1,
        task="classification",
        inputs=[tensor],
        outputs=[tensor],
        variants=[Variant(name="int8", file=artifact, opset=17, quantization="static", golden_tolerance=0.1)],
        golden=artifact,
        features=references,
        classes=list(classes),
        score=score,
    )


def window(
    made: Manifest,
    device: str,
    features: dict[str, NDArray[np.float64]],
    classes: Sequence[int] = (),
    *,
    sequence: int = 1,
    end_ns: int = T0_NS,
) -> Window:
    """What a device would send of these values."""
    sketches = {}
    for reference in made.features:
        if reference.name in features:
            sketch = BinSketch(reference.edges)
            sketch.record_many(features[reference.name])
            sketches[reference.name] = sketch.to_bytes()
    return Window(
        device=device,
        boot_id="00000000-00000001",
        sequence=sequence,
        model=made.model,
        version=made.version,
        variant="int8",
        arm="main",
        start_ns=end_ns - 60 * S,
        end_ns=end_ns,
        count=sum(classes) or max((len(values) for values in features.values()), default=0),
        features=sketches,
        classes={index: int(count) for index, count in enumerate(classes) if count},
    )


class UnequalFleet:
    """Devices whose means, spreads, class habits and traffic all differ; the reference is their population."""

    def __init__(self, seed: int, *, spread: float = 0.4, reference_values: int = 800) -> None:
        self._random, self._spread = np.random.default_rng(seed), spread
        self._habit = self._random.dirichlet(np.full(_CLASSES, 4.0))
        random = self._random
        values = random.normal(0, spread, reference_values) + random.normal(0, 1, reference_values) * self._scales(
            reference_values
        )
        classes = random.multinomial(1, self._habits(reference_values)).sum(axis=0)
        self.manifest = manifest({"mean": values, "std": np.exp(values / 2)}, classes.tolist())

    def windows(self, devices: int, *, moved: float = 0.0) -> list[Window]:
        """One window a device; `moved` shifts every value by so many standard deviations."""
        random, found = self._random, []
        for number in range(devices):
            size = int(np.clip(random.lognormal(5.0, 1.0), 25, 5_000))
            values = moved + random.normal(0, self._spread) + random.normal(0, self._scales(1)[0], size)
            features = {"mean": values, "std": np.exp(values / 2)}
            classes = random.multinomial(size, self._habits(1)[0])
            found.append(window(self.manifest, f"device-{number}", features, classes.tolist()))
        return found

    def _scales(self, size: int) -> NDArray[np.float64]:
        return np.exp(self._random.normal(0, self._spread / 2, size))

    def _habits(self, size: int) -> NDArray[np.float64]:
        return self._random.dirichlet(self._habit * 20, size=size)


Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def device_effects(kind: str, size: int, random: np.random.Generator) -> Values:
    """How devices differ, `[size]`, each kind with mean 0 and deviation 1: "odd" is every tenth device far away."""
    if kind == "exponential":
        return random.exponential(size=size) - 1.0
    if kind == "odd":
        return np.where(random.random(size) < 0.1, 3.0, -1 / 3)
    return random.normal(size=size)


def counted(values: Values, edges: Values) -> Counts:
    """Counts `[bins]` of values, those beyond the edges in the first and the last bin."""
    return np.bincount(np.searchsorted(edges[1:-1], values, side="right"), minlength=len(edges) - 1)


class NumberFleet:
    """Devices whose location, spread and traffic differ; the reference are values of the same population."""

    def __init__(self, seed: int, *, spread: float = 0.5, effects: str = "normal", reference_values: int = 800) -> None:
        self.random, self._spread, self._effects = np.random.default_rng(seed), spread, effects
        random = self.random
        values = spread * device_effects(effects, reference_values, random)
        values += random.normal(size=reference_values) * np.exp(random.normal(0, 0.2, reference_values))
        self.edges = quantile_edges(values)
        self.reference = counted(values, self.edges)

    def habits(self, devices: int) -> Values:
        """Where each device's values lie, `[devices]`."""
        return self._spread * device_effects(self._effects, devices, self.random)

    def counts(self, devices: int, *, moved: float = 0.0, scale: float = 1.0, habits: Values | None = None) -> Counts:
        """What each device counts, `[devices, bins]`."""
        random = self.random
        where = self.habits(devices) if habits is None else habits
        rows = []
        for number in range(devices):
            size = int(np.clip(random.lognormal(5.0, 1.5), 20, 5_000))
            own = where[number] + random.normal(0, np.exp(random.normal(0, 0.2)), size)
            rows.append(counted(scale * (own + moved), self.edges))
        return np.array(rows)


class EmbeddingFleet:
    """Devices that sum random features of points around places of their own."""

    def __init__(
        self, seed: int, *, spread: float = 0.3, odd: bool = False, dimensions: int = 6, reference_values: int = 800
    ) -> None:
        self.random, self._spread, self._dimensions = np.random.default_rng(seed), spread, dimensions
        self._odd = odd
        made = reference_sums("x", self.points(self.habits(reference_values)), features=64)
        assert made is not None
        self.reference: RandomFeatureReference = made

    def habits(self, devices: int) -> Values:
        """Where each device's points lie, `[devices, dimensions]`."""
        habits = self.random.normal(0, self._spread, (devices, self._dimensions))
        if self._odd:
            habits += 2.0 * device_effects("odd", devices, self.random)[:, None]
        return habits

    def points(self, centres: Values) -> NDArray[np.float32]:
        """A point around each centre."""
        return np.asarray(centres + self.random.normal(size=centres.shape), dtype=np.float32)

    def sums(self, habits: Values, *, values: int = 40, moved: float = 0.0) -> EmbeddingSums:
        """What each device sums of `values` points, all moved in the first dimension."""
        found = []
        for centre in habits:
            points = self.points(np.tile(centre, (values, 1)))
            points[:, 0] += moved
            found.append(whole_sums(self.reference, points))
        counts = np.array([count for count, _ in found])
        return EmbeddingSums(sums=np.array([sums for _, sums in found]), counts=counts)
