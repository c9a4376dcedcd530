"""Reference distributions: what a model's inputs and answers looked like when it was made.

They are counted with the device's own extractors, bins and random features, so a device's window and the reference
are the same quantity. Features come from the training data; classes, scores and whatever is read from an output from
data the weights were not fitted to, because a model is surer of what it has learnt by heart.
Numbers are rounded to what a comparison needs, because a manifest travels to every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError
from edge_agent.telemetry.features import check_extractor, extract
from edge_agent.telemetry.random_features import DEFAULT_FEATURES, fold, random_features
from fleet_protocol.bins import BinSketch, quantile_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import FeatureReference, RandomFeatureReference, ScoreReference, TensorSpec
from quantize.data import Inputs
from quantize.errors import InvalidDataError

MAX_COLUMNS = 64
MAX_SUMMED_SAMPLES = 20_000
MAX_COMPARED_SAMPLES = 500  # for the median of their distances
DEFAULT_SEED = 1
_SUMMED_AT_ONCE = 1024
_EDGE_DIGITS, _SUM_DECIMALS, _BANDWIDTH_DIGITS, _TRACE_DIGITS = 9, 4, 7, 9
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


def score_reference(values: NDArray[np.float64]) -> ScoreReference:
    """The distribution of the answers' scores `[n]` (`features.answers` of the agent). Raises InvalidDataError."""
    try:
        edges, counts = _distribution(values)
    except SketchError as error:
        raise InvalidDataError(f"the model's scores cannot be counted: {error}") from None
    return ScoreReference(edges=edges, counts=counts)


def watched_tensor(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The tensor whose random features are worth summing: the first that holds a fixed number of values a sample.

    An output of floats beside the answer (the first one) comes first, because it is the model's embedding; then the
    inputs of floats or pixels; then the answer, for inputs (such as words by number) between which there is no
    distance. "" is none.
    """
    floats = [spec for spec in outputs if spec.datatype.startswith("FP")]
    numeric = [spec for spec in inputs if spec.datatype.startswith("FP") or spec.datatype in ("UINT8", "INT8")]
    for spec in (*floats[1:], *numeric, *floats[:1]):
        if min(spec.shape[1:], default=0) >= 1 and max(spec.shape[1:]) >= 2:
            return spec.name
    return ""


def reference_sums(
    tensor: str, x: NDArray[Any], *, seed: int = DEFAULT_SEED, features: int = DEFAULT_FEATURES
) -> RandomFeatureReference | None:
    """The sums of random features of at most MAX_SUMMED_SAMPLES samples of `tensor`, `x` `[n, ...]`, evenly spread.

    The bandwidth is the median distance between samples (Gretton et al. 2012: "A Kernel Two-Sample Test"). Samples
    that hold a NaN or an infinity are left out; None where all are alike, which no kernel can compare.
    """
    finite = x[np.isfinite(x).reshape(len(x), -1).all(axis=1)]
    if len(finite) < 2:
        return None
    chosen = finite[evenly_spread(len(finite), MAX_SUMMED_SAMPLES)]
    bandwidth = _median_distance(fold(chosen[evenly_spread(len(chosen), MAX_COMPARED_SAMPLES)], seed=seed))
    if not bandwidth > 0:
        return None
    rule = RandomFeatureReference(
        tensor=tensor,
        seed=seed,
        bandwidth=float(f"{bandwidth:.{_BANDWIDTH_DIGITS}g}"),
        count=len(chosen),
        sums=[0.0] * features,
    )
    sums, squares = np.zeros(features), np.zeros((features, features))
    for start in range(0, len(chosen), _SUMMED_AT_ONCE):
        made = random_features(rule, chosen[start : start + _SUMMED_AT_ONCE]).astype(np.float64)
        sums += made.sum(axis=0)
        squares += made.T @ made
    return msgspec.structs.replace(
        rule,
        sums=[round(value, _SUM_DECIMALS) for value in sums.tolist()],
        covariance_traces=_covariance_traces(sums, squares, len(chosen)),
    )


def _covariance_traces(sums: NDArray[np.float64], squares: NDArray[np.float64], count: int) -> list[float]:
    """Traces of the first three powers of the cosines' covariance, from sums `[D]` and products `[D, D]` of features.

    The second and the third are without the bias that the covariance's own sampling error adds, for normal features
    (Srivastava 2005 for the square); where that leaves nothing, as they are.
    """
    mean = sums / count
    # a feature is sqrt(2 / D) of a cosine
    covariance = (squares - np.outer(mean, sums)) / (count - 1) * (len(sums) / 2.0)
    first, second = float(np.trace(covariance)), float((covariance**2).sum())
    third = float(np.einsum("ij,ij->", covariance @ covariance, covariance))
    freedom = count - 1.0
    square = second - first**2 / freedom
    cube = third - 3.0 * first * square / freedom - first**3 / freedom**2
    plain = (first, square if square > 0 else second, cube if cube > 0 else third)
    return [float(f"{max(trace, 0.0):.{_TRACE_DIGITS}g}") for trace in plain]


def mmd2(sums_a: NDArray[np.float64], n_a: int, sums_b: NDArray[np.float64], n_b: int) -> float:
    """The squared maximum mean discrepancy of two sets by their sums `[features]` of random features.

    The unbiased statistic of Gretton et al. 2012 (lemma 6), where a sample's kernel with itself is 1: around zero, and
    also below it, for two sets of one distribution. Raises ValueError for a set of fewer than two samples.
    """
    if min(n_a, n_b) < 2:
        raise ValueError(f"a discrepancy is between sets of two or more samples, not {n_a} and {n_b}")
    within_a = (float(sums_a @ sums_a) - n_a) / (n_a * (n_a - 1))
    within_b = (float(sums_b @ sums_b) - n_b) / (n_b * (n_b - 1))
    return within_a + within_b - 2.0 * float(sums_a @ sums_b) / (n_a * n_b)


def evenly_spread(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of the places 0 to `count` - 1, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64))


def _median_distance(rows: NDArray[np.float32]) -> float:
    """The median distance between two of `rows` `[n, numbers]` that differ; 0.0 where none do."""
    exact = rows.astype(np.float64)
    exact -= exact.mean(axis=0)
    squares = (exact * exact).sum(axis=1)
    pairs = squares[:, None] + squares[None, :] - 2.0 * (exact @ exact.T)
    distances = pairs[np.triu_indices(len(exact), k=1)]
    apart = distances[distances > 1e-12 * max(float(squares.max()), 1e-300)]
    return math.sqrt(float(np.median(apart))) if apart.size else 0.0


def _distribution(values: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    edges = _rounded(quantile_edges(values))
    sketch = BinSketch(edges)
    sketch.record_many(values)
    return edges.tolist(), sketch.bins.tolist()


def _rounded(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The edges with few digits; the ends are kept exactly, so that the reference's own extremes stay inside."""
    rounded = np.array([float(f"{edge:.{_EDGE_DIGITS}g}") for edge in edges.tolist()])
    rounded[[0, -1]] = edges[[0, -1]]
    return rounded if (np.diff(rounded) > 0).all() else edges
