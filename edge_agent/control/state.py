"""The device's own record of its updates: one file, replaced atomically at every step.

`active` is the pointer to the running bundle: because it lies in the same file as the phase and the crash
guard, a power cut leaves either the step before or the step after, and nothing in between.

Models are kept by slot (see `slots`). A file of an agent that knew one arm per model has plain model names: these are
the slots of the arm "main", and what such an agent ran under another arm's name moves to that arm's slot.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from edge_agent.control.slots import parts_of, slot_of
from edge_agent.durable_files import replace_file
from fleet_protocol.messages import Assignment, Desired, Phase, VariantFigures

_LOG = logging.getLogger(__name__)
STATE_FILE = "state.json"


class CrashGuard(Struct, frozen=True, kw_only=True):
    """Stands on disk while an unproven model is loaded: a start that finds it knows the last run died with it.

    `machine_boot_id` is the kernel's, so that a machine that lost power is told from a process that died.
    """

    machine_boot_id: str
    machine_restarts: int = 0


class Installed(Struct, frozen=True, kw_only=True):
    """A bundle on this device, the variant chosen for this CPU, and what was measured for the choice.

    `measured_with` names the CPU and ONNX Runtime that the figures are of.
    """

    bundle: str
    version: str
    variant: str
    figures: tuple[VariantFigures, ...] = ()
    measured_with: str = ""


class ModelState(Struct, frozen=True, kw_only=True):
    """One slot's update: `active` serves now, `last_good` is where a revert goes, `target` is the assignment
    being worked on or, once HEALTHY, the one that runs.

    `stands_in` is the former assignment of a slot that is assigned no more, but whose `active` answers as long as no
    other arm of its model has proven itself.
    """

    phase: Phase = Phase.PENDING
    active: Installed | None = None
    last_good: Installed | None = None
    target: Assignment | None = None
    guard: CrashGuard | None = None
    error: str = ""
    stands_in: Assignment | None = None


class ControlState(Struct, frozen=True, kw_only=True):
    """Everything `control` remembers. `desired` is the newest accepted one, already verified.

    `directed_by` are the ids of the director keys that signed it. `models` is by slot; `quarantine` by
    `slots.quarantine_key`, with the reason.
    """

    desired: Desired | None = None
    models: dict[str, ModelState] = field(default_factory=dict)
    quarantine: dict[str, str] = field(default_factory=dict)
    directed_by: tuple[str, ...] = ()

    @property
    def generation(self) -> int:
        """The newest accepted generation, 0 before the first."""
        return self.desired.generation if self.desired else 0


class StateFile:
    """Reads and writes the state durably."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STATE_FILE

    def load(self) -> ControlState:
        """The last saved state; an empty one on first start, and where the disk damaged the file.

        A damaged file is kept beside it and logged: the fleet then sends the signed desired state anew.
        """
        try:
            return _by_slot(msgspec.json.decode(self._path.read_bytes(), type=ControlState))
        except FileNotFoundError:
            return ControlState()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            aside = self._path.with_name(f"{STATE_FILE}.unreadable-{time.time_ns()}")
            self._path.rename(aside)
            _LOG.error("the update state %s is unreadable (%s): kept as %s, starting anew", self._path, error, aside)
            return ControlState()

    def save(self, state: ControlState) -> None:
        """Replace the file; durable when it returns."""
        replace_file(self._path, msgspec.json.encode(state))


def _by_slot(state: ControlState) -> ControlState:
    """The state with every assigned model in the slot that its assignment names."""
    misplaced = {
        slot: slot_of(model.target)
        for slot, model in state.models.items()
        if model.target is not None and parts_of(slot)[0] == model.target.model and slot_of(model.target) != slot
    }
    if not misplaced:
        return state
    return replace(state, models={misplaced.get(slot, slot): model for slot, model in state.models.items()})
