"""Fit the trees in scikit-learn and write them as ONNX. Only this module needs skl2onnx, and no test does.

200 trees of at most 8 leaves, each fitted to a random 70 % of the rows and choosing among 6 random columns a split.
The converter's map of class to probability (ZipMap) is off: the agent serves plain tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.tabular.data import Table
from models.traces import OPSET, without_traces

_ML_OPSET = 3
_MAX_DIFFERENCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Training:
    """The boosting's settings."""

    seed: int
    trees: int = 200
    depth: int = 3
    learning_rate: float = 0.05
    rows: float = 0.7
    columns: int = 6


def fit(table: Table, training: Training) -> bytes:
    """The trained trees as the bytes of an ONNX file: `columns` `[n, 30]` to `label` `[n]`, `probabilities` `[n, 2]`.

    Raises RuntimeError when the file does not answer as scikit-learn does.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    trees: Any = GradientBoostingClassifier(
        n_estimators=training.trees,
        max_depth=training.depth,
        learning_rate=training.learning_rate,
        subsample=training.rows,
        max_features=training.columns,
        random_state=training.seed,
    ).fit(table.columns, table.labels)
    model = _export(trees, table.columns.shape[1])
    _check(model, trees, table.columns)
    return model


def _export(trees: Any, columns: int) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    return without_traces(
        convert_sklearn(
            trees,
            name="tabular",  # otherwise a random one
            initial_types=[("columns", FloatTensorType([None, columns]))],
            final_types=[("label", Int64TensorType([None])), ("probabilities", FloatTensorType([None, 2]))],
            options={id(trees): {"zipmap": False}},
            target_opset={"": OPSET, "ai.onnx.ml": _ML_OPSET},
        )
    )


def _check(model: bytes, trees: Any, columns: NDArray[np.float32]) -> None:
    # thresholds become FP32: a row exactly on one could take the other branch
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"columns": columns})
    difference = float(np.abs(probabilities - trees.predict_proba(columns)).max())
    if difference > _MAX_DIFFERENCE or (label != trees.predict(columns)).any():
        raise RuntimeError(f"the ONNX trees differ from scikit-learn's by {difference:.2g}: check skl2onnx's version")
