"""What must hold: a number that a model earns on samples, by name or by a function of the user's.

Every metric is a function of all outputs, all inputs and the truth; it says whether more is better. What it needs
and does not find is an InvalidDataError that names it, never a zero.

| name | truth | of |
|---|---|---|
| accuracy | classes `[n]` | the highest of the scores `[n, classes]` |
| auc | 0 or 1 `[n]`, 1 is the positive class | the score of class 1, a single score `[n]` or `[n, 1]`, or the mean squared error of a reconstruction |
| mse | targets like the output, or none for a reconstruction of the input | squared error, the mean; less is better |
| FILE.py:FUNCTION | what the function takes | `FUNCTION(outputs, inputs, labels) -> float`, more is better unless the function has `higher_is_better = False` |
"""  # noqa: E501 - a table

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.data import Inputs, Samples
from quantize.errors import InvalidDataError, InvalidOptionError

Outputs = Mapping[str, NDArray[Any]]
MetricFunction = Callable[[Outputs, Inputs, "NDArray[Any] | None"], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by the name it has in manifests and reports."""

    name: str
    function: MetricFunction
    higher_is_better: bool = True

    def __call__(self, outputs: Outputs, samples: Samples) -> float:
        """The metric of `outputs` (each `[n, ...]`) for `samples`. Raises InvalidDataError, also when it raises."""
        try:
            value = float(self.function(outputs, samples.inputs, samples.labels))
        except InvalidDataError:
            raise
        except Exception as error:
            raise InvalidDataError(f"the metric {self.name} raised {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise InvalidDataError(f"the metric {self.name} is {value}: it must be a finite number")
        return value

    def keeps(self, *, fp32: float, variant: float) -> float:
        """The share of fp32's quality that a variant keeps: 1 is as good, 0.99 a drop of 1 %, 0 no evidence of any.

        An fp32 model that scores 0 where more is better has no quality to keep.
        """
        if self.higher_is_better:
            return 1.0 - (fp32 - variant) / abs(fp32) if fp32 else 0.0
        if variant == fp32:
            return 1.0
        return fp32 / variant if variant > 0 else 0.0


def metric_named(text: str) -> Metric:
    """The metric `accuracy`, `auc`, `mse` or `FILE.py:FUNCTION`. Raises InvalidOptionError."""
    if text in METRICS:
        return METRICS[text]
    file, _, function = text.rpartition(":")
    if not file.endswith(".py") or not function:
        raise InvalidOptionError(f"unknown metric {text!r}: use {', '.join(METRICS)} or FILE.py:FUNCTION")
    return _custom(Path(file), function)


def scores(outputs: Outputs) -> NDArray[np.float64]:
    """The scores `[n, classes]` of a classifier: its first float output of two dimensions and two or more classes."""
    for array in outputs.values():
        if array.ndim == 2 and array.shape[1] >= 2 and array.dtype.kind == "f":
            return array.astype(np.float64)
    raise InvalidDataError("no output holds scores [n, classes]: choose another metric")


def predicted_classes(outputs: Outputs) -> NDArray[np.int64]:
    """The class `[n]` with the highest score; -1 where a score is NaN, which is no answer."""
    table = scores(outputs)
    classes: NDArray[np.int64] = np.where(np.isnan(table).any(axis=1), -1, table.argmax(axis=1))
    return classes


def anomaly_scores(outputs: Outputs, inputs: Inputs) -> NDArray[np.float64]:
    """One number a sample `[n]`, greater is more anomalous or more positive (see the table above)."""
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim <= 2 and array.size == len(array):
            return array.reshape(len(array)).astype(np.float64)
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] == 2:
            return array[:, 1].astype(np.float64)
    reconstruction = _reconstruction(outputs, inputs)
    if reconstruction is not None:
        output, source = reconstruction
        errors: NDArray[np.float64] = _squared(output, source).reshape(len(output), -1).mean(axis=1)
        return errors
    raise InvalidDataError(f"auc is for two classes; the model has {scores(outputs).shape[1]}")


def _accuracy(outputs: Outputs, _: Inputs, labels: NDArray[Any] | None) -> float:
    table, truth = scores(outputs), _class_labels(labels, "accuracy")
    if truth.min() < 0 or truth.max() >= table.shape[1]:
        raise InvalidDataError(
            f"labels run from {truth.min()} to {truth.max()}; the model has classes 0 to {table.shape[1] - 1}"
        )
    return float((predicted_classes(outputs) == truth).mean())


def _auc(outputs: Outputs, inputs: Inputs, labels: NDArray[Any] | None) -> float:
    """The chance that a positive sample scores above a negative one, ties half (Mann and Whitney 1947)."""
    truth, values = _class_labels(labels, "auc"), anomaly_scores(outputs, inputs)
    positives = int((truth == 1).sum())
    negatives = int((truth == 0).sum())
    if positives + negatives != len(truth) or not positives or not negatives:
        raise InvalidDataError("auc needs labels 0 and 1, and both of them")
    order = np.argsort(values, kind="stable")
    _, first, counts = np.unique(values[order], return_index=True, return_counts=True)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _mse(outputs: Outputs, inputs: Inputs, labels: NDArray[Any] | None) -> float:
    if labels is not None:
        first = next(iter(outputs.values()))
        if first.size != labels.size:
            raise InvalidDataError(f"mse compares outputs {first.shape} with labels {labels.shape}: they must match")
        return float(_squared(first.reshape(labels.shape), labels).mean())
    reconstruction = _reconstruction(outputs, inputs)
    if reconstruction is None:
        raise InvalidDataError("mse needs target values as labels; without labels, an output shaped like the input")
    return float(_squared(*reconstruction).mean())


def _class_labels(labels: NDArray[Any] | None, metric: str) -> NDArray[np.int64]:
    if labels is None:
        raise InvalidDataError(f"the samples to measure {metric} with have no labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InvalidDataError(f"{metric} needs whole class numbers [n] as labels, not {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)


def _reconstruction(outputs: Outputs, inputs: Inputs) -> tuple[NDArray[Any], NDArray[Any]] | None:
    for output in outputs.values():
        for source in inputs.values():
            if output.shape == source.shape:
                return output, source
    return None


def _squared(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    difference: NDArray[np.float64] = a.astype(np.float64) - b.astype(np.float64)
    return difference * difference


def _custom(path: Path, name: str) -> Metric:
    spec = importlib.util.spec_from_file_location(f"edge_quantize_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InvalidOptionError(f"the metric's file {path} is not there: check --metric")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidOptionError(f"{path} does not load: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidOptionError(f"{path} has no function {name}: check --metric")
    return Metric(
        name=f"{path.name}:{name}",
        function=function,
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
    )


METRICS = {
    "accuracy": Metric(name="accuracy", function=_accuracy),
    "auc": Metric(name="auc", function=_auc),
    "mse": Metric(name="mse", function=_mse, higher_is_better=False),
}
