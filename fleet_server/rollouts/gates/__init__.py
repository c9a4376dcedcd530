"""Gates: rules over evidence with verdict pass, fail or inconclusive. Pure functions of what was observed.

Every interval holds at all looks together, so a gate may be asked at any time and a fail acts at once. Which statistics
judge which gate, and what they assume, is in docs/gates.md.
"""

from fleet_server.rollouts.gates.evaluation import evaluate_gates
from fleet_server.rollouts.gates.verdicts import GateResult, Verdict

__all__ = ["GateResult", "Verdict", "evaluate_gates"]
