"""alibi-detect as its examples have it: KSDrift, TabularDrift and MMDDrift at p = 0.05, each day's rows against the
reference.

`FOLDER`: reference.npz, day0.npz ...; prints {"ks": [...], "tabular": [...], "mmd": [...]} by day. KS and tabular
correct for the columns (Bonferroni, their default). MMD compares MMD_ROWS rows with as many, standardised, because its
kernel is a matrix of all rows with all.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from alibi_detect.cd import KSDrift, MMDDrift, TabularDrift

P_VALUE = 0.05
MMD_ROWS = 1_000


def main() -> None:
    """Look at every day."""
    folder = Path(sys.argv[1])
    random = np.random.default_rng(int(sys.argv[2]))
    reference = dict(np.load(folder / "reference.npz"))
    names = [name for name in reference if name != "class"]
    numbers = matrix(reference, names)
    mean, sd = numbers.mean(axis=0), numbers.std(axis=0)

    def few(columns: dict[str, np.ndarray]) -> np.ndarray:
        every = (matrix(columns, names) - mean) / sd
        return every[random.choice(len(every), MMD_ROWS, replace=False)]

    detectors = {
        "ks": (KSDrift(numbers, p_val=P_VALUE), lambda day: matrix(day, names)),
        "tabular": (
            TabularDrift(
                matrix(reference, [*names, "class"]), p_val=P_VALUE, categories_per_feature={len(names): None}
            ),
            lambda day: matrix(day, [*names, "class"]),
        ),
        "mmd": (MMDDrift(few(reference), p_val=P_VALUE), few),
    }
    alarms: dict[str, list[bool]] = {name: [] for name in detectors}
    for path in sorted(folder.glob("day*.npz")):
        day = dict(np.load(path))
        for name, (detector, rows) in detectors.items():
            alarms[name].append(bool(detector.predict(rows(day))["data"]["is_drift"]))
    print(json.dumps(alarms))


def matrix(columns: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """`[rows, names]` in the 32 bits that it works with."""
    return np.stack([columns[name] for name in names], axis=1).astype(np.float32)


if __name__ == "__main__":
    main()
