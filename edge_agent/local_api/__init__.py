"""The HTTP and Unix-socket server for applications on the device.

`LocalApi` is in `edge_agent.local_api.server`, apart, so that an agent without a server does not load asyncio.
"""

from __future__ import annotations

from edge_agent.local_api.service import Health, InferenceService, ModelDescription

__all__ = ["Health", "InferenceService", "ModelDescription"]
