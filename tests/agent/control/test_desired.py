"""A desired state is believed only when it is signed, for this device, and can be carried out."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from edge_agent.control.desired import MAX_ARMS, verify_desired
from edge_agent.errors import DesiredRefusedError
from fleet_protocol.envelope import DESIRED_TYPE, MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Desired, encode

DIRECTOR, SECOND, STRANGER = (PrivateKey(bytes([number]) * 32) for number in range(1, 4))
ASSIGNMENT = Assignment(model="m", version="1.0.0", bundle="a" * 64)
DESIRED = Desired(fleet="f", device="d", generation=1, issued_at_ns=1, assignments=[ASSIGNMENT])


def verify(envelope: bytes, threshold: int = 1) -> Desired:
    return verify_desired(
        envelope,
        fleet="f",
        device="d",
        director_keys=[DIRECTOR.public, SECOND.public],
        threshold=threshold,
    )


def signed(desired: Desired = DESIRED, *keys: PrivateKey, kind: str = DESIRED_TYPE) -> bytes:
    return sign_envelope(kind, encode(desired), keys or [DIRECTOR])


def test_a_signed_desired_state_for_this_device_is_believed() -> None:
    assert verify(signed()) == DESIRED
    assert verify(signed(DESIRED, DIRECTOR, SECOND), threshold=2) == DESIRED


@pytest.mark.parametrize(
    ("envelope", "says"),
    [
        (encode(DESIRED), "not a signed envelope"),
        (signed(DESIRED, STRANGER), "0 valid signatures"),
        (signed(kind=MANIFEST_TYPE), "the envelope holds"),
        (signed().replace(b"desired+json", b"desired+jsom"), "the envelope holds"),
        (sign_envelope(DESIRED_TYPE, b"{}", [DIRECTOR]), "not a Desired"),
        (sign_envelope(DESIRED_TYPE, b'{"schema":2}', [DIRECTOR]), "schema 2"),
        (b"", "not a signed envelope"),
    ],
)
def test_what_is_not_signed_or_not_understood_is_refused(envelope: bytes, says: str) -> None:
    with pytest.raises(DesiredRefusedError, match=says):
        verify(envelope)


def test_too_few_directors_are_refused() -> None:
    with pytest.raises(DesiredRefusedError, match="2 needed"):
        verify(signed(DESIRED, DIRECTOR, DIRECTOR), threshold=2)


def arms(*names: str, shadow: bool = False) -> list[Assignment]:
    return [replace(ASSIGNMENT, arm=name, weight=0.5, shadow=shadow) for name in names]


@pytest.mark.parametrize(
    "assignments",
    [
        [replace(ASSIGNMENT, weight=0.01)],
        arms("b", "c"),
        [ASSIGNMENT, *arms("b"), *arms("next", shadow=True)],
        [ASSIGNMENT, replace(ASSIGNMENT, model="n"), replace(ASSIGNMENT, model="n", arm="s", shadow=True)],
        arms(*(f"arm-{number}" for number in range(MAX_ARMS))),
    ],
)
def test_weighted_arms_and_one_shadow_for_each_model_are_believed(assignments: list[Assignment]) -> None:
    desired = replace(DESIRED, assignments=assignments)

    assert verify(signed(desired)) == desired


@pytest.mark.parametrize("weight", [0, -0.5, 1.5])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    payload = encode(DESIRED).replace(b'"weight":1.0', b'"weight":%f' % weight)

    with pytest.raises(DesiredRefusedError, match="weight"):
        verify(sign_envelope(DESIRED_TYPE, payload, [DIRECTOR]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": "other"}, "signed for device f/other"),
        ({"fleet": "other"}, "signed for device other/d"),
        ({"assignments": [ASSIGNMENT, ASSIGNMENT]}, "the arm main twice"),
        ({"assignments": [replace(ASSIGNMENT, shadow=True)]}, "no arm that answers"),
        ({"assignments": [ASSIGNMENT, *arms("b", "c", shadow=True)]}, "2 shadows"),
        ({"assignments": arms(*(f"arm-{number}" for number in range(MAX_ARMS + 1)))}, f"up to {MAX_ARMS}"),
        ({"assignments": [ASSIGNMENT, replace(ASSIGNMENT, model="n", shadow=True)]}, "model n has a shadow"),
    ],
)
def test_what_is_for_another_device_or_cannot_be_carried_out_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DesiredRefusedError, match=says):
        verify(signed(replace(DESIRED, **changes)))
