"""NannyML as its tutorial has it: univariate drift with its defaults, chunks of a day, against a reference of ten days.

`FOLDER`: reference.npz, day0.npz ...; prints {"any_column": [...]} by day. The default is the Jensen-Shannon distance,
with thresholds three standard deviations of the reference's chunks around their mean.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import nannyml
import numpy as np
import pandas as pd

REFERENCE_DAYS = 10
FIRST = pd.Timestamp("2025-06-01")


def main() -> None:
    """Look at every day."""
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    reference = rows(folder / "reference.npz")
    day = np.arange(len(reference)) * REFERENCE_DAYS // len(reference)
    reference["at"] = FIRST + pd.to_timedelta(day, unit="D")
    names = [name for name in reference.columns if name != "at"]
    calculator = nannyml.UnivariateDriftCalculator(
        column_names=names, treat_as_categorical=["class"], timestamp_column_name="at", chunk_period="D"
    )
    calculator.fit(reference)
    alarms = []
    for number, path in enumerate(sorted(folder.glob("day*.npz"))):
        seen = rows(path)
        seen["at"] = FIRST + pd.Timedelta(days=REFERENCE_DAYS + number)
        found = calculator.calculate(seen).filter(period="analysis").to_df()
        alarms.append(bool(found.loc[:, found.columns.get_level_values(2) == "alert"].to_numpy().any()))
    print(json.dumps({"any_column": alarms}))


def rows(path: Path) -> pd.DataFrame:
    """Rows of a file, the class as a category."""
    columns = dict(np.load(path))
    columns["class"] = columns["class"].astype(int).astype(str)
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
