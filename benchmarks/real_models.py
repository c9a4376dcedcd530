"""The models that benchmarks run: MLPerf Tiny's, data that is not part of the product."""

from __future__ import annotations

import os
from pathlib import Path

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "mlperf_tiny"


def mlperf_tiny_file(name: str) -> Path:
    """One of the models or inputs. Raises FileNotFoundError, which says how to point to them."""
    path = Path(os.environ.get("EDGEFLEET_MLPERF_TINY", _SHARED)) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: set EDGEFLEET_MLPERF_TINY to the folder of the MLPerf Tiny models"
        )
    return path
