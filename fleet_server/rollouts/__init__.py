"""Rollouts: who gets a version when, which evidence lets it go on, and how it is taken back.

Rooms: `policy` (what is allowed), `cohorts` (who is next), `observation` and `evidence` (what was seen),
`comparison` and `gates` (what it means), `state_machine` (what follows), `desired`, `records` and `driver` (doing it),
`repository` (what the operator API calls). Deciding is pure; only the last four touch the database.
"""

from fleet_server.rollouts.driver import RolloutDriver, StepReport
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.repository import (
    RolloutView,
    command_rollout,
    create_rollout,
    get_rollout,
    list_rollouts,
)

__all__ = [
    "RolloutDriver",
    "RolloutPolicy",
    "RolloutView",
    "StepReport",
    "command_rollout",
    "create_rollout",
    "get_rollout",
    "list_rollouts",
    "parse_policy",
]
