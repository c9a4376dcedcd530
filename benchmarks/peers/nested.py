"""The one-image request and answer of servers with a JSON of their own: {"input": nested} to {"output": nested}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.peer import Image


def nested_body(image: Image) -> bytes:
    """The request for one image."""
    return json.dumps({"input": image.tolist()}).encode()


def nested_scores(answer: Any) -> Sequence[float]:
    """The scores of its answer."""
    scores: Sequence[float] = answer["output"][0]
    return scores
