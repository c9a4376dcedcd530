"""A recorder over a real outbox and a real model: a device without its link."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.live_models import Serving
from edge_agent.runtime.residency import Residency
from edge_agent.runtime.session import Model
from edge_agent.serving import ServingPath
from edge_agent.telemetry.outbox import Outbox
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import SeriesKey
from fleet_protocol.manifest import (
    Artifact,
    FeatureReference,
    Manifest,
    ScoreReference,
    TensorSpec,
    Variant,
)
from fleet_protocol.messages import Window, decode
from fleet_protocol.topics import TopicKind
from tests.agent.runtime import onnx_files
from tests.agent.telemetry.windows import open_outbox

EDGES = [0.0, 1.0, 2.0, 4.0]
KEY = SeriesKey("m", "1.0.0", "fp32", "main")
X = {"x": np.ones((1, 3), dtype=np.float32)}


def manifest(version: str = "1.0.0", features: int = 1) -> Manifest:
    artifact = Artifact(sha256="0" * 64, size_bytes=0)
    return Manifest(
        model="m",
        version=version,
        created_at_ns=1,
        task="classification",
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        variants=[Variant(name="fp32", file=artifact, opset=17, quantization="none", golden_tolerance=0.1)],
        golden=artifact,
        features=[
            FeatureReference(name=f"f{number}", extractor="mean", input="x", edges=EDGES, counts=[1, 1, 1])
            for number in range(features)
        ],
        score=ScoreReference(edges=[0.0, 3.0, 6.0], counts=[1, 1]),
    )


class Device:
    """A recorder over a real outbox, and what it put there."""

    def __init__(self, folder: Path, window_s: float = 3_600.0) -> None:
        self.outbox: Outbox = open_outbox(folder / "outbox.db")
        self.recorder = Recorder(device="d1", window_s=window_s, outbox=self.outbox, data_dir=folder)
        self.residency = Residency(budget_bytes=None, on_event=lambda kind, name, detail: None)
        self.path = ServingPath(recorder=self.recorder, residency=self.residency, boot_id=self.outbox.boot_id)
        self._file = onnx_files.linear(folder / "linear.onnx")

    def put_to_work(
        self,
        version: str = "1.0.0",
        *,
        task: str = "classification",
        features: int = 1,
        arm: str = "main",
        weight: float = 1.0,
        shadow: bool = False,
        file: Path | None = None,
    ) -> Serving:
        key = SeriesKey("m", version, "fp32", arm)
        serving = Serving(
            name="m",
            version=version,
            variant="fp32",
            arm=arm,
            weight=weight,
            shadow=shadow,
            bundle=None,
            slot=self.residency.add(f"m/{arm}/{version}", lambda: warmed(file or self._file), size_hint_bytes=1),
            lanes=Lanes(name="m", limit=1, max_waiting=16, max_batch=8),
            series=self.recorder.serve(key, manifest(version, features)),
            labels=("no", "yes"),
            task=task,
        )
        self.path.put_to_work(serving)
        return serving

    def closed(self) -> list[Window]:
        """Close the window; every window since the last call, taken by the server."""
        self.recorder.close_window()
        return self.sent()

    def sent(self) -> list[Window]:
        records = self.outbox.pending(100_000)
        self.outbox.confirm(self.outbox.boot_id, [(1, 2**53 - 1)])
        return [decode(Window, record.payload) for record in records if record.kind is TopicKind.TELEMETRY]

    def close(self) -> None:
        self.path.stop()
        self.residency.close()
        self.recorder.stop()
        self.outbox.close()


def warmed(file: Path) -> Model:
    """A loaded model that has run once."""
    model = Model.load(file)
    model.warm()
    return model
