"""The zoo's digits and keywords on a real agent with a fleet and no broker: real inputs, ten features, all sketches."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import Agent
from edge_agent.config import AgentConfig, DeviceSection, ModelSection, MqttSection, TelemetrySection
from edge_agent.telemetry.features import extract
from fleet_protocol.bins import BinSketch, quantile_edges
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import FeatureReference, Manifest

FEATURES = 10
NAMES = ("digits", "keywords")
_ROOT = Path(__file__).resolve().parent.parent.parent
_BUNDLES = {"digits": "digits/bundles/1.2.0", "keywords": "keywords/bundles/1.0.0"}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A model of the zoo, its manifest with ten features, and its held-out samples as single calls."""

    name: str
    manifest: Manifest
    file: Path
    calls: list[dict[str, NDArray[Any]]]


def traffic(name: str) -> Traffic:
    """What a device with the model `name` sees."""
    folder = _ROOT / "models" / _BUNDLES[name]
    manifest = read_manifest(folder)
    tensor = manifest.inputs[0].name
    samples = _samples(name)
    more = range(FEATURES - len(manifest.features))
    features = [*manifest.features, *(_projection(index, tensor, samples) for index in more)]
    whole = {field: getattr(manifest, field) for field in manifest.__struct_fields__} | {"features": features}
    return Traffic(
        name=name,
        manifest=Manifest(**whole),
        file=file_path(folder, manifest.variants[0].file.sha256),
        calls=[{tensor: samples[place : place + 1].copy()} for place in range(len(samples))],
    )


def _samples(name: str) -> NDArray[np.float32]:
    if name == "digits":
        from models.digits.data import split

        parts = split().values()
        return np.concatenate([one.tensor() for one in parts])
    from models.keywords.data import part

    (array,) = part("final").inputs.values()
    return np.ascontiguousarray(array, dtype=np.float32)


def _projection(index: int, tensor: str, samples: NDArray[np.float32]) -> FeatureReference:
    rule = FeatureReference(
        name=f"projection_{index}",
        extractor="projection",
        input=tensor,
        parameters={"seed": 7.0, "index": float(index)},
        edges=[0.0, 1.0],
        counts=[0],
    )
    values = extract(rule, {tensor: samples})
    sketch = BinSketch(quantile_edges(values))
    sketch.record_many(values)
    fields = {name: getattr(rule, name) for name in rule.__struct_fields__}
    return FeatureReference(**(fields | {"edges": sketch.edges.tolist(), "counts": sketch.bins.tolist()}))


@contextmanager
def agent_with(given: Traffic, *, window_s: float, has_telemetry: bool = True, embedding: bool = True) -> Iterator[Any]:
    """An agent that serves the model and watches all that its manifest names; the broker is away."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-telemetry-") as folder:
        config = AgentConfig(
            data_dir=Path(folder),
            device=DeviceSection(id="press-0007"),
            mqtt=MqttSection(url="mqtt://127.0.0.1:9"),  # the discard port: offline is a normal state
            telemetry=TelemetrySection(window_s=window_s),
            models={
                given.name: ModelSection(
                    path=given.file,
                    version=given.manifest.version,
                    task="classification",
                    labels=given.manifest.labels,
                )
            },
        )
        with Agent(config=config) as agent:
            manifest = given.manifest
            for series in agent._recorder._series.values():
                series.watch(
                    tuple(manifest.features) if has_telemetry else (),
                    manifest.score if has_telemetry else None,
                    confidence=manifest.confidence if has_telemetry else None,
                    embedding=manifest.random_features if has_telemetry and embedding else None,
                )
            yield agent


def endless(given: Traffic, *, seed: int = 5) -> Iterator[dict[str, NDArray[Any]]]:
    """The held-out samples in a seeded order, again and again."""
    order = np.random.default_rng(seed).permutation(len(given.calls)).tolist()
    return (given.calls[place] for place in itertools.cycle(order))
