"""Slots, and what serves in them. Pure.

A slot is where one arm of one model is updated. It is called "MODEL" for the arm "main" and "MODEL/ARM" for every
other one: no model's name holds a slash, and a state file from before there were arms reads as what it meant.

What serves follows from the state alone (`serving`), per model:
1. every assigned arm that has an active bundle answers, with its assignment's weight, or shadows;
2. only while none of them answers do the stand-ins: the arms that answered before and are assigned no more.
So the share of an arm that is not there yet, or was taken back, goes to the others, and a model that answered and
stays assigned answers at every moment of an update from some arms to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet_protocol.messages import MAIN_ARM, Assignment

if TYPE_CHECKING:
    from edge_agent.control.state import ControlState, Installed, ModelState

_SEPARATOR = "/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What serves in one slot: a bundle, and the assignment that says how."""

    assignment: Assignment
    installed: Installed


def slot_of(assignment: Assignment) -> str:
    """The slot of an assignment."""
    return slot_name(assignment.model, assignment.arm)


def slot_name(model: str, arm: str) -> str:
    """The slot of one arm of a model."""
    return model if arm == MAIN_ARM else f"{model}{_SEPARATOR}{arm}"


def parts_of(slot: str) -> tuple[str, str]:
    """(model, arm) of a slot."""
    model, _, arm = slot.partition(_SEPARATOR)
    return model, arm or MAIN_ARM


def quarantine_key(slot: str, bundle: str) -> str:
    """Under which a bundle that failed in a slot is in quarantine: the digest, and the arm unless it is "main"."""
    _, arm = parts_of(slot)
    return bundle if arm == MAIN_ARM else f"{bundle}{_SEPARATOR}{arm}"


def quarantined_bundle(key: str) -> str:
    """The bundle of a quarantine's key."""
    return key.partition(_SEPARATOR)[0]


def serving(state: ControlState) -> dict[str, Service]:
    """What should serve, by slot."""
    assigned, stand_ins, answered = {}, {}, set()
    for slot, model in state.models.items():
        if model.active is None:
            continue
        if model.target is not None:
            assigned[slot] = Service(assignment=model.target, installed=model.active)
            if not model.target.shadow:
                answered.add(model.target.model)
        elif model.stands_in is not None:
            stand_ins[slot] = Service(assignment=model.stands_in, installed=model.active)
    return assigned | {slot: service for slot, service in stand_ins.items() if parts_of(slot)[0] not in answered}


def answers(model: ModelState) -> bool:
    """Whether a slot is assigned to answer, as against shadowing and standing in."""
    return model.target is not None and not model.target.shadow
