"""What the updater needs of the agent: put models to work, see how they do, tell the fleet."""

from __future__ import annotations

from typing import Protocol

from edge_agent.control.installation import WarmModel
from edge_agent.control.trial import Look
from fleet_protocol.messages import Assignment, EventKind, Phase, Probation


class ServingRoom(Protocol):
    """The serving path and the link, as the updater sees them. Called from its thread alone."""

    def put_to_work(
        self, assignment: Assignment, warm: WarmModel, *, bundle: str, on_trial: Probation | None = None
    ) -> None:
        """Let this model answer, or shadow, from now on as the assigned arm with its weight.

        `bundle` is what it was loaded from: the assigned one, or the one to come back to. `on_trial` it is watched, by
        this rule, until `end_trial`.
        """

    def end_trial(self, model: str, arm: str) -> None:
        """What serves as this arm has proven itself."""

    def take_from_work(self, model: str, arm: str) -> None:
        """Let nothing of the fleet's serve as this arm."""

    def set_weight(self, model: str, arm: str, weight: float) -> None:
        """Change the share of an arm that answers."""

    def serving_bundle(self, model: str, arm: str) -> str | None:
        """The bundle that serves as this arm now."""

    def look(self, model: str, arm: str) -> Look | None:
        """What the model that serves as this arm did since this process started, and what it does now."""

    def emit(self, kind: EventKind, *, model: str, bundle: str, phase: Phase | None, detail: str) -> None:
        """Send an event."""

    def report(self) -> None:
        """Send the reported state again, it has changed."""
