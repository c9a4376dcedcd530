"""MLServer (SeldonIO): a custom runtime, as it ships none for ONNX, behind the Open Inference Protocol v2."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.oip import oip_body, oip_scores
from benchmarks.peers.peer import Command, Launch, Peer, by_threads, ort_defaults
from fleet_server.demo.processes import free_port

_FOLDER = Path(__file__).parent


def _command(launch: Launch) -> Command:
    settings = {
        "host": "127.0.0.1",
        "http_port": launch.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "debug": False,
        "parallel_workers": launch.configuration.workers,
    }
    model = {"name": "kws", "implementation": "onnx_runtime.OnnxRuntime", "parameters": {"uri": str(launch.model)}}
    (launch.folder / "settings.json").write_text(json.dumps(settings))
    (launch.folder / "model-settings.json").write_text(json.dumps(model))
    (launch.folder / "onnx_runtime.py").write_bytes((_FOLDER / "onnx_runtime.py").read_bytes())
    return [launch.python.parent / "mlserver", "start", launch.folder]


MLSERVER = Peer(
    name="MLServer",
    package="mlserver",
    requirements=_FOLDER / "requirements.txt",
    command=_command,
    path="/v2/models/kws/infer",
    body=oip_body,
    read_scores=oip_scores,
    configurations=(
        by_threads("parallel_workers=1 (default)", workers=1),
        by_threads("parallel_workers=0", workers=0),
        by_threads("parallel_workers=2", workers=2),
        ort_defaults("parallel_workers=0", workers=0),
    ),
)
