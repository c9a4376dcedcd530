"""Evidently as its quick start has it: `DataDriftPreset` with its defaults, each day's rows against the reference.

`FOLDER`: reference.npz, day0.npz ...; prints {"any_column": [...], "dataset": [...]} by day. More than a thousand
reference rows make it compare numbers by the normed Wasserstein distance and classes by the Jensen-Shannon distance,
both against 0.1; the data set drifts when half the columns do.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset


def main() -> None:
    """Look at every day."""
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    reference = dataset(folder / "reference.npz")
    alarms: dict[str, list[bool]] = {"any_column": [], "dataset": []}
    for path in sorted(folder.glob("day*.npz")):
        answer = Report([DataDriftPreset()]).run(dataset(path), reference).dict()
        drifted = next(metric for metric in answer["metrics"] if "DriftedColumnsCount" in metric["metric_name"])
        alarms["any_column"].append(drifted["value"]["count"] > 0)
        alarms["dataset"].append(drifted["value"]["share"] >= drifted["config"]["drift_share"])
    print(json.dumps(alarms))


def dataset(path: Path) -> Dataset:
    """Rows of a file, the class as a category."""
    columns = dict(np.load(path))
    columns["class"] = columns["class"].astype(int).astype(str)
    numbers = [name for name in columns if name != "class"]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=["class"])
    return Dataset.from_pandas(pd.DataFrame(columns), data_definition=definition)


if __name__ == "__main__":
    main()
