"""Checks a desired state before anything believes it.

In this order: signature by enough director keys → decodes, schema known → for this fleet and device → only what
this agent can carry out: per model at most MAX_ARMS arms of distinct names, at least one that answers, at most one
shadow. The generation is judged later, by the state machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from edge_agent.errors import DesiredRefusedError
from fleet_protocol.envelope import DESIRED_TYPE, verify_envelope
from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Assignment, Desired, decode

MAX_ARMS = 16
"""Arms of one model, its shadow included: each is a model in memory."""


def verify_desired(
    envelope: bytes, *, fleet: str, device: str, director_keys: Sequence[PublicKey], threshold: int
) -> Desired:
    """The desired state in a signed envelope. Raises DesiredRefusedError, which says why."""
    try:
        desired = decode(Desired, verify_envelope(envelope, DESIRED_TYPE, director_keys, threshold))
    except ProtocolError as error:
        raise DesiredRefusedError(f"desired state refused: {error}") from None
    if (desired.fleet, desired.device) != (fleet, device):
        raise DesiredRefusedError(
            f"desired state refused: it is signed for device {desired.fleet}/{desired.device}, this is {fleet}/{device}"
        )
    of_model: dict[str, list[Assignment]] = defaultdict(list)
    for assignment in desired.assignments:
        of_model[assignment.model].append(assignment)
    for model, assignments in of_model.items():
        problem = _problem_of(assignments)
        if problem:
            raise DesiredRefusedError(f"desired state refused: model {model} {problem}")
    return desired


def _problem_of(arms: Sequence[Assignment]) -> str:
    """Why these assignments of one model cannot be carried out; "" when they can. Weights were checked by decoding."""
    if len(arms) > MAX_ARMS:
        return f"has {len(arms)} arms, this agent runs up to {MAX_ARMS}"
    names = [arm.arm for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return f"has the arm {twice} twice: give each arm a name of its own"
    shadows = sum(arm.shadow for arm in arms)
    if shadows == len(arms):
        return "has a shadow and no arm that answers"
    if shadows > 1:
        return f"has {shadows} shadows, this agent runs one"
    return ""
