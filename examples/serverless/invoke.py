"""The serverless handler on this machine, called as a platform calls it: one API Gateway request, one plain event.

    EDGEFLEET_MODEL_DIGITS=models/digits/fp32/1.1.0.onnx python examples/serverless/invoke.py

On a platform, set the function's handler to `edge_agent.serverless.handler` and the same variable, and put the model
into the image or a layer.
"""

from __future__ import annotations

import json
import time

from edge_agent.serverless import handler

IMAGE = [[[[0.0] * 8] * 8]]


class Context:
    """What the platform tells of the time that an invocation has left."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the platform ends the invocation."""
        return round((self._end - time.monotonic()) * 1000)


def main() -> None:
    """Print both answers."""
    request = {
        "version": "2.0",
        "rawPath": "/predict",
        "requestContext": {"http": {"method": "POST"}},
        "headers": {"content-type": "application/json"},
        "body": json.dumps({"model": "digits", "inputs": {"image": IMAGE}}),
    }
    print(json.dumps(handler(request, Context(3.0))))
    print(json.dumps(handler({"model": "digits", "inputs": {"image": IMAGE}}, Context(3.0))))


if __name__ == "__main__":
    main()
