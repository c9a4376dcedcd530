"""The light agent that runs on each device: local inference, telemetry, signed updates.

>>> from edge_agent import Agent
>>> with Agent.open("agent.toml") as agent:                 # doctest: +SKIP
...     prediction = agent.infer("digits", {"image": image})
...     agent.report_outcome(prediction.id, label=5)
"""

from edge_agent.agent import Agent
from edge_agent.errors import AgentError
from edge_agent.prediction import Prediction

__all__ = ["Agent", "AgentError", "Prediction"]
