"""Inputs to outputs: sessions, the models that serve, and the CPU they run on."""

from __future__ import annotations

from edge_agent.runtime.cpu import cpu_quota, cpu_signature, has_vnni
from edge_agent.runtime.live_models import LiveModels, Serving
from edge_agent.runtime.session import Model

__all__ = ["LiveModels", "Model", "Serving", "cpu_quota", "cpu_signature", "has_vnni"]
