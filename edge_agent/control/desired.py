"""Checks a desired state before anything believes it.

In this order: signature by enough director keys → decodes, schema known → for this fleet and device →
only what this agent can carry out. The generation is judged later, by the state machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.errors import DesiredRefusedError
from fleet_protocol.envelope import DESIRED_TYPE, verify_envelope
from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Desired, decode


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
    names = [assignment.model for assignment in desired.assignments]
    if len(set(names)) != len(names):
        raise DesiredRefusedError("desired state refused: this agent runs one arm per model, and a model stands twice")
    for assignment in desired.assignments:
        if assignment.shadow or assignment.weight != 1.0:
            raise DesiredRefusedError(
                f"desired state refused: model {assignment.model} asks for a shadow or a weighted arm, "
                "which this agent version cannot run"
            )
    return desired
