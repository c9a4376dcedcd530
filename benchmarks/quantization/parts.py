"""One model with its data in parts: what every quantizer in these benchmarks is given, on disk as well.

The three parts share no sample. Quantizers see calibration and selection; final judges what they made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from fleet_protocol.manifest import Task
from quantize.data import Samples
from quantize.metrics import METRICS, Metric
from quantize.pipeline import Request

CALIBRATION, SELECTION, FINAL = PARTS = ("calibration", "selection", "final")
MODEL_FILE, SETTINGS_FILE = "model.onnx", "settings.json"
LABELS = "labels"
"""The array with the truth in a part's npz; the others are the model's inputs."""
_CREATED_AT_NS = 1_790_000_000_000_000_000


class Settings(Struct, frozen=True, kw_only=True):
    """What to keep to. `truth` says in a sentence where labels come from."""

    name: str
    metric: str
    max_drop: float
    task: Task
    truth: str
    is_network: bool = True


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its data and what to keep to. `committed` is the folder of a bundle made earlier, if there is one."""

    settings: Settings
    fp32: bytes
    calibration: Samples
    selection: Samples
    final: Samples
    committed: Path | None = None

    @property
    def name(self) -> str:
        """What the model is called in figures."""
        return self.settings.name

    @property
    def metric(self) -> Metric:
        """What must hold."""
        return METRICS[self.settings.metric]

    @property
    def sizes(self) -> dict[str, int]:
        """Samples by part."""
        return {CALIBRATION: len(self.calibration), SELECTION: len(self.selection), FINAL: len(self.final)}

    def request(self) -> Request:
        """What `quantize` is asked for: all of a bundle that changes the search, and none of its papers."""
        return Request(
            source=MODEL_FILE,
            fp32=self.fp32,
            model=self.name,
            version="1.0.0",
            created_at_ns=_CREATED_AT_NS,
            calibration=self.calibration,
            selection=self.selection,
            final=self.final,
            task=self.settings.task,
            metric=self.metric,
            max_drop=self.settings.max_drop,
        )


def write_case(case: Case, folder: Path) -> None:
    """Put everything into a new `folder`: `model.onnx`, `settings.json` and an npz for each part."""
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(case.fp32)
    (folder / SETTINGS_FILE).write_bytes(msgspec.json.encode(case.settings))
    for name, samples in zip(PARTS, (case.calibration, case.selection, case.final), strict=True):
        truth = {} if samples.labels is None else {LABELS: samples.labels}
        np.savez(folder / f"{name}.npz", allow_pickle=False, **samples.inputs, **truth)


def read_case(folder: Path) -> Case:
    """What `write_case` put there, but for `committed`."""
    parts: dict[str, Samples] = {}
    for name in PARTS:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        labels = arrays.pop(LABELS, None)
        parts[name] = Samples(inputs=arrays, labels=labels)
    return Case(
        settings=msgspec.json.decode((folder / SETTINGS_FILE).read_bytes(), type=Settings),
        fp32=(folder / MODEL_FILE).read_bytes(),
        calibration=parts[CALIBRATION],
        selection=parts[SELECTION],
        final=parts[FINAL],
    )
