"""Drift: what devices saw against what the model was made with, judged by devices.

Rooms: `signals` (what is compared), `evidence` (more than chance?), `report` (the verdict in words), `reading` (I/O).
"""

from fleet_server.drift.findings import DriftReport, Verdict
from fleet_server.drift.reading import read_drift

__all__ = ["DriftReport", "Verdict", "read_drift"]
