"""The one-image request and answer of the Open Inference Protocol v2 in JSON, with flat data as its text shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.peer import Image


def oip_body(image: Image) -> bytes:
    """The request for one image."""
    tensor = {
        "name": "input_1",
        "shape": list(image.shape),
        "datatype": "FP32",
        "data": [float(value) for value in image.ravel()],
    }
    return json.dumps({"inputs": [tensor]}).encode()


def oip_scores(answer: Any) -> Sequence[float]:
    """The scores of its answer."""
    scores: Sequence[float] = answer["outputs"][0]["data"]
    return scores
