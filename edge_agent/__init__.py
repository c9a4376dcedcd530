"""The light agent that runs on each device: local inference, telemetry, signed updates.

>>> from edge_agent import Agent
>>> with Agent.open("agent.toml") as agent:                 # doctest: +SKIP
...     prediction = agent.infer("digits", {"image": image})
...     agent.report_outcome(prediction.id, label=5)

`Client` is the same for an application that asks an agent in another process. Names are loaded at their first use:
who imports the client does not pay for the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from edge_agent.client import Client
    from edge_agent.errors import AgentError
    from edge_agent.local_api.service import CallOptions
    from edge_agent.prediction import Prediction

__all__ = ["Agent", "AgentError", "CallOptions", "Client", "Prediction"]

_HOMES = {
    "Agent": "edge_agent.agent",
    "AgentError": "edge_agent.errors",
    "CallOptions": "edge_agent.local_api.service",
    "Client": "edge_agent.client",
    "Prediction": "edge_agent.prediction",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value
