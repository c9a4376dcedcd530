"""The device's own record of its updates: one file, replaced atomically at every step.

`active` is the pointer to the running bundle: because it lies in the same file as the phase and the crash
guard, a power cut leaves either the step before or the step after, and nothing in between.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec
from msgspec import Struct, field

from edge_agent.durable_files import replace_file
from fleet_protocol.messages import Assignment, Desired, Phase

_LOG = logging.getLogger(__name__)
_STATE_FILE = "state.json"


class CrashGuard(Struct, frozen=True, kw_only=True):
    """Stands on disk while an unproven model is loaded: a start that finds it knows the last run died with it.

    `machine_boot_id` is the kernel's, so that a machine that lost power is told from a process that died.
    """

    machine_boot_id: str
    machine_restarts: int = 0


class Installed(Struct, frozen=True, kw_only=True):
    """A bundle on this device, and the variant chosen for this CPU."""

    bundle: str
    version: str
    variant: str


class ModelState(Struct, frozen=True, kw_only=True):
    """One model's update: `active` serves now, `last_good` is where a revert goes, `target` is the assignment
    being worked on or, once HEALTHY, the one that runs.
    """

    phase: Phase = Phase.PENDING
    active: Installed | None = None
    last_good: Installed | None = None
    target: Assignment | None = None
    guard: CrashGuard | None = None
    error: str = ""


class ControlState(Struct, frozen=True, kw_only=True):
    """Everything `control` remembers. `desired` is the newest accepted one, already verified."""

    desired: Desired | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    quarantine: dict[str, str] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """The newest accepted generation, 0 before the first."""
        return self.desired.generation if self.desired else 0


class StateFile:
    """Reads and writes the state durably."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _STATE_FILE

    def load(self) -> ControlState:
        """The last saved state; an empty one on first start, and where the disk damaged the file.

        A damaged file is kept beside it and logged: the fleet then sends the signed desired state anew.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=ControlState)
        except FileNotFoundError:
            return ControlState()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            aside = self._path.with_name(f"{_STATE_FILE}.unreadable-{time.time_ns()}")
            self._path.rename(aside)
            _LOG.error("the update state %s is unreadable (%s): kept as %s, starting anew", self._path, error, aside)
            return ControlState()

    def save(self, state: ControlState) -> None:
        """Replace the file; durable when it returns."""
        replace_file(self._path, msgspec.json.encode(state))
