"""The models that answer calls right now, one per name, exchangeable under load.

Invariants: a caller gets a whole `Serving`, of before or after a swap, never a mixture; a swap waits for
nobody and delays nobody; a model that was swapped out stays valid for the calls that hold it, and its
memory returns when the last of them lets go.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edge_agent.errors import UnknownModelError
from edge_agent.runtime.session import Model


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Serving:
    """One model as it serves: which version, variant and arm answers under `name`.

    `bundle` is the digest of the bundle it came from, None for a plain file. `labels` name the classes by index.
    """

    name: str
    version: str
    variant: str
    arm: str
    bundle: str | None
    model: Model
    labels: tuple[str, ...]
    task: str


class LiveModels:
    """What serves under each name. Reads take no lock: the table is replaced whole, never edited."""

    __slots__ = ("_table", "_writing")

    def __init__(self) -> None:
        self._table: dict[str, Serving] = {}
        self._writing = threading.Lock()

    def get(self, name: str) -> Serving:
        """What serves under `name` at this moment. Raises UnknownModelError, which lists what is loaded."""
        try:
            return self._table[name]
        except KeyError:
            loaded = ", ".join(sorted(self._table)) or "nothing yet"
            raise UnknownModelError(f"no model {name[:80]!r} is loaded here: loaded is {loaded}") from None

    def swap(self, serving: Serving) -> Serving | None:
        """Let `serving` answer under its name from now on. Returns what answered before, None when nothing did."""
        with self._writing:
            before = self._table.get(serving.name)
            self._table = {**self._table, serving.name: serving}
            return before

    def remove(self, name: str) -> Serving | None:
        """Let nothing answer under `name`. Returns what did; removing what is not there is a normal return."""
        with self._writing:
            before = self._table.get(name)
            self._table = {key: serving for key, serving in self._table.items() if key != name}
            return before

    def names(self) -> tuple[str, ...]:
        """The names that are served, sorted."""
        return tuple(sorted(self._table))

    def all(self) -> tuple[Serving, ...]:
        """Everything that serves, sorted by name."""
        return tuple(sorted(self._table.values(), key=lambda serving: serving.name))
