"""What a benchmark answers, the same for all."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured benchmark. `ratio` is ours over the peer's (or over the allowance); `target` bounds it."""

    id: str
    title: str
    ratio: float
    target: str
    holds: bool
    figures: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The object that is printed, with the machine it was measured on."""
        return {**asdict(self), "machine": machine()}


def machine() -> dict[str, Any]:
    """The machine and the software that matter to a figure."""
    import onnxruntime

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor()
