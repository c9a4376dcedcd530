"""Drift: what devices saw against what the model was made with, judged by devices.

Rooms, in the order in which an answer is made: `populations` (what is compared with what), `reading` (I/O), `signals`
and `tallies` (what devices counted), `pairing`, `judging` and `accuracies` over `evidence` (more than chance?),
`segments`, `drill_down`, `onset` and `timelines` (where and since when), `severity`, `wording`, `report` (the whole),
told as `findings`. `page` draws it. `monitor`, `watching` and `open_findings` are the standing watch.
"""

from fleet_server.drift.findings import DriftReport, Verdict
from fleet_server.drift.reading import read_drift

__all__ = ["DriftReport", "Verdict", "read_drift"]
