"""The table: scikit-learn's bundled Wisconsin breast cancer set, 569 rows of 30 numbers, in four parts.

| part | rows | for |
|---|---|---|
| train | 285 | the trees, and the columns' reference distributions |
| calibration | 44 | ranges, where something is quantized |
| selection | 90 | deciding which variants may ship |
| final | 150 | the scores that are reported; it is `holdout.npz` |

The split is a fixed permutation. Its checksum is pinned, so a numpy that shuffled otherwise is an error here and not
a silent leak of final rows into training.

The set's numbers are doubles; the model takes FP32, and the trees were fitted to FP32, so none is rounded twice.
Class 1 is malignant, what a screening looks for: the set itself counts the other way round.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.data import Samples

LABELS = ("benign", "malignant")
COLUMNS = tuple(
    f"{statistic}_{quantity}"
    for statistic in ("mean", "error", "worst")
    for quantity in (
        "radius", "texture", "perimeter", "area", "smoothness",
        "compactness", "concavity", "concave_points", "symmetry", "fractal_dimension",
    )
)  # fmt: skip
TRAIN, CALIBRATION, SELECTION, FINAL = "train", "calibration", "selection", "final"
HOLDOUT = Path(__file__).parent / "holdout.npz"

_SIZES = {TRAIN: 285, CALIBRATION: 44, SELECTION: 90, FINAL: 150}
_SEED = 20_250
_ORDER_SHA256 = "9cbab5b41916b81d61f31827fc714d93a4d4d558300b56b617185deaf73c84ed"


@dataclass(frozen=True, kw_only=True)
class Table:
    """`columns` FP32 `[n, 30]` in the order of COLUMNS, and `labels` uint8 `[n]`, places in LABELS."""

    columns: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def samples(self) -> Samples:
        """The rows as `quantize` takes them: the input `columns`, and labels."""
        return Samples(inputs={"columns": self.columns}, labels=self.labels.astype(np.int64))


def all_rows() -> Table:
    """Every row, in scikit-learn's order. Needs scikit-learn."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    return Table(columns=bunch.data.astype(np.float32), labels=(1 - bunch.target).astype(np.uint8))


def split() -> dict[str, Table]:
    """The four parts by name. Raises RuntimeError when this numpy permutes otherwise."""
    table = all_rows()
    order = np.random.default_rng(_SEED).permutation(len(table.labels)).astype(np.int64)
    if hashlib.sha256(order.tobytes()).hexdigest() != _ORDER_SHA256:
        raise RuntimeError("this numpy shuffles the rows differently: the split would leak; pin numpy's version")
    parts, start = {}, 0
    for name, size in _SIZES.items():
        chosen = order[start : start + size]
        parts[name] = Table(columns=table.columns[chosen], labels=table.labels[chosen])
        start += size
    return parts


def write_holdout() -> None:
    """Write the final part: `columns` FP32 `[n, 30]` and `labels` uint8 `[n]`."""
    final = split()[FINAL]
    np.savez(HOLDOUT, columns=final.columns, labels=final.labels)


def holdout() -> Table:
    """The final part as it is committed; needs no scikit-learn."""
    with np.load(HOLDOUT, allow_pickle=False) as archive:
        return Table(columns=archive["columns"], labels=archive["labels"])
