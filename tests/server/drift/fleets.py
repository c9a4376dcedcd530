"""Simulated fleets for the drift tests: a bundle's reference, devices that differ, and their windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import BinSketch, quantile_edges
from fleet_protocol.manifest import Artifact, FeatureReference, Manifest, ScoreReference, TensorSpec, Variant
from fleet_protocol.messages import Window

S = 1_000_000_000
T0_NS = 1_750_000_000 * S
MODEL, VERSION = "digits", "1.0.0"
_CLASSES = 6


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
