"""The models that answer calls right now: one or several arms under each name, exchangeable under load.

Invariants: a caller gets a whole `Serving`, of before or after a swap, never a mixture; a swap waits for
nobody and delays nobody; a model that was swapped out stays valid for the calls that hold it, and its
memory returns when the last of them lets go.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.errors import UnknownModelError
from edge_agent.runtime.arms import Arm
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.residency import ModelSlot
from fleet_protocol.messages import MAIN_ARM

if TYPE_CHECKING:
    from edge_agent.runtime.comparison import Comparison
    from edge_agent.telemetry.series import Series


class Serving(Struct, frozen=True, kw_only=True, weakref=True, eq=False):
    """One model as it serves: which version and variant answers as `arm` under `name`.

    `slot` holds the loaded model or, while it sleeps, its place; `lanes` its queue; `series` what telemetry
    counts of it. `bundle` is the digest of the bundle it came from, None for a plain file. `labels` name the
    classes by index. `weight` is the arm's share of the calls, relative to the other arms; a `shadow` answers none.
    `comparison` is with the incumbent, as long as the model is on trial.
    """

    name: str
    version: str
    variant: str
    arm: str = MAIN_ARM
    weight: float = 1.0
    shadow: bool = False
    bundle: str | None
    slot: ModelSlot
    lanes: Lanes
    series: Series
    labels: tuple[str, ...]
    task: str
    comparison: Comparison | None = None


class Route(Struct, frozen=True):
    """Where the calls of one name go. `only` is the answering arm when there is just one: the common case.

    `choices` are the `arms` as `choose_arm` takes them.
    """

    arms: tuple[Serving, ...]
    choices: tuple[Arm, ...]
    shadow: Serving | None
    only: Serving | None

    @classmethod
    def of(cls, servings: Sequence[Serving]) -> Route:
        """The route over these arms."""
        arms = tuple(sorted((entry for entry in servings if not entry.shadow), key=lambda entry: entry.arm))
        shadow = next((entry for entry in servings if entry.shadow), None)
        choices = tuple(Arm(name=entry.arm, weight=entry.weight) for entry in arms)
        return cls(arms, choices, shadow, arms[0] if len(arms) == 1 else None)

    def all(self) -> tuple[Serving, ...]:
        """The arms, and the shadow last."""
        return self.arms if self.shadow is None else (*self.arms, self.shadow)

    def main(self) -> Serving:
        """The arm with the largest weight."""
        return max(self.arms, key=lambda entry: (entry.weight, entry.arm == MAIN_ARM))


class LiveModels:
    """What serves under each name. Reads take no lock: the table is replaced whole, never edited."""

    __slots__ = ("_table", "_writing")

    def __init__(self) -> None:
        self._table: dict[str, Route] = {}
        self._writing = threading.Lock()

    def get(self, name: str) -> Route:
        """The route of `name` at this moment; it has an answering arm. Raises UnknownModelError."""
        route = self._table.get(name)
        if route is None or not route.arms:
            answering = ", ".join(self.names()) or "nothing yet"
            raise UnknownModelError(f"no model {name[:80]!r} is loaded here: loaded is {answering}")
        return route

    def find(self, name: str, arm: str = MAIN_ARM) -> Serving | None:
        """What serves as `arm` of `name`, shadows included; None when nothing does."""
        route = self._table.get(name)
        return next((entry for entry in route.all() if entry.arm == arm), None) if route else None

    def swap(self, serving: Serving) -> Serving | None:
        """Let `serving` answer as its arm from now on. Returns what did before, None when nothing did."""
        return self._exchange(serving.name, serving.arm, serving)

    def remove(self, name: str, arm: str = MAIN_ARM) -> Serving | None:
        """Let nothing answer as this arm. Returns what did; removing what is not there is a normal return."""
        return self._exchange(name, arm, None)

    def set_weight(self, name: str, arm: str, weight: float) -> None:
        """Give an arm another share of the calls; a normal return when it is not there."""
        serving = self.find(name, arm)
        if serving is not None and serving.weight != weight:
            self._exchange(name, arm, replace(serving, weight=weight))

    def _exchange(self, name: str, arm: str, serving: Serving | None) -> Serving | None:
        with self._writing:
            before = self.find(name, arm)
            servings = [entry for entry in self._servings(name) if entry.arm != arm]
            if serving is not None:
                servings.append(serving)
            table = {key: route for key, route in self._table.items() if key != name}
            self._table = {**table, name: Route.of(servings)} if servings else table
            return before

    def _servings(self, name: str) -> tuple[Serving, ...]:
        route = self._table.get(name)
        return route.all() if route else ()

    def names(self) -> tuple[str, ...]:
        """The names that are answered, sorted."""
        return tuple(sorted(name for name, route in self._table.items() if route.arms))

    def all(self) -> tuple[Serving, ...]:
        """Everything that serves, shadows included, sorted by name and arm."""
        servings = [entry for route in self._table.values() for entry in route.all()]
        return tuple(sorted(servings, key=lambda entry: (entry.name, entry.arm)))
