"""Reference distributions: what a model's inputs and answers looked like when it was made.

They are counted with the device's own extractors and bins, so a device's window and the reference are the
same quantity. Features come from the training data; classes and scores from data the weights were not fitted
to, because a model is surer of what it has learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError
from edge_agent.telemetry.features import check_extractor, extract
from fleet_protocol.bins import BinSketch, quantile_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import FeatureReference, ScoreReference, TensorSpec
from quantize.data import Inputs
from quantize.errors import InvalidDataError

MAX_COLUMNS = 64
_UNCOUNTED = ([0.0, 1.0], [0])


def default_features(specs: Sequence[TensorSpec]) -> list[FeatureReference]:
    """Features worth watching for these inputs, not counted yet.

    Images (4 dimensions): mean, std, brightness, sharpness. Tables `[n, columns]` of at most MAX_COLUMNS
    columns: each column. Anything else numeric: mean and std.
    """
    features = []
    for spec in specs:
        if spec.datatype in ("BYTES", "BOOL"):
            continue
        prefix = "" if len(specs) == 1 else f"{spec.name}_"
        if len(spec.shape) == 2 and 1 <= spec.shape[1] <= MAX_COLUMNS:
            features += [
                uncounted(f"{prefix}column_{index}", "column", spec.name, index=float(index))
                for index in range(spec.shape[1])
            ]
        else:
            names = ("mean", "std", "brightness", "sharpness") if len(spec.shape) == 4 else ("mean", "std")
            features += [uncounted(prefix + name, name, spec.name) for name in names]
    return features


def uncounted(name: str, extractor: str, input_name: str, **parameters: float) -> FeatureReference:
    """A feature that `count_features` will give its distribution."""
    edges, counts = _UNCOUNTED
    return FeatureReference(
        name=name, extractor=extractor, input=input_name, edges=edges, counts=counts, parameters=parameters
    )


def count_features(
    features: Sequence[FeatureReference], inputs: Inputs, specs: Sequence[TensorSpec]
) -> list[FeatureReference]:
    """The features with edges and counts of `inputs` `[n, ...]`.

    Raises BundleRefusedError for a feature that a device would refuse, InvalidDataError for one that is
    never a finite number.
    """
    counted = []
    for feature in features:
        check_extractor(feature, specs)
        try:
            edges, counts = _distribution(extract(feature, inputs))
        except (SketchError, InvalidInputError) as error:
            raise InvalidDataError(f"feature {feature.name!r} cannot be counted: {error}") from None
        counted.append(msgspec.structs.replace(feature, edges=edges, counts=counts))
    return counted


def class_counts(scores: NDArray[Any]) -> list[int]:
    """How often each class has the highest of the scores `[n, classes]`."""
    return [int(count) for count in np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])]


def score_reference(scores: NDArray[Any]) -> ScoreReference:
    """The distribution of the highest of the scores `[n, classes]`. Raises InvalidDataError."""
    try:
        edges, counts = _distribution(scores.max(axis=1).astype(np.float64))
    except SketchError as error:
        raise InvalidDataError(f"the model's scores cannot be counted: {error}") from None
    return ScoreReference(edges=edges, counts=counts)


def _distribution(values: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    edges = quantile_edges(values)
    sketch = BinSketch(edges)
    sketch.record_many(values)
    return edges.tolist(), sketch.bins.tolist()
