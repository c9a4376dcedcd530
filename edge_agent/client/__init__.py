"""A client of the agent's local API, with numpy in and out: no ONNX Runtime, no HTTP library.

`client` has the calls, `connections` the kept-alive sockets, `answers` what comes back, `tensors` the bytes.
"""

from __future__ import annotations

from edge_agent.client.answers import ClientPrediction
from edge_agent.client.client import Client

__all__ = ["Client", "ClientPrediction"]
