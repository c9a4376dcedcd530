"""What is known of a server that takes part in a comparison: how it is installed, started, asked and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Command = Sequence[str | Path]
Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One documented way to configure a server. `environment` is what its program and its libraries read."""

    name: str
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a server: its Python, where it listens, its own empty folder, the model and the configuration."""

    python: Path
    port: int
    folder: Path
    model: Path
    configuration: Configuration


@dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """One server. `command` may write files into the launch's folder, in which the command then runs.

    `requirements` is None for the server that runs in the environment of the benchmark itself. `body` gives the
    request's bytes for one input of shape [1, 49, 10, 1]; `read_scores` gives the 12 scores of a decoded answer.
    """

    name: str
    package: str
    requirements: Path | None
    command: Callable[[Launch], Command]
    path: str
    body: Callable[[Image], bytes]
    read_scores: Callable[[Any], Sequence[float]]
    configurations: tuple[Configuration, ...]


def by_threads(name: str, *, workers: int = 1, environment: Mapping[str, str] | None = None) -> Configuration:
    """A configuration with one intra-op thread per session, which fits a model of a tenth of a millisecond."""
    return Configuration(
        name=f"{name}, ORT threads=1", workers=workers, environment={"BENCH_ORT_THREADS": "1", **(environment or {})}
    )


def ort_defaults(name: str, *, workers: int = 1, environment: Mapping[str, str] | None = None) -> Configuration:
    """The same with as many threads as ONNX Runtime chooses by itself."""
    return Configuration(
        name=f"{name}, ORT defaults", workers=workers, environment={"BENCH_ORT_THREADS": "0", **(environment or {})}
    )
