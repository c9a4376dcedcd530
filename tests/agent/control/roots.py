"""Trust roots for the tests of what a device believes."""

from __future__ import annotations

from pathlib import Path

from fleet_protocol.envelope import DESIRED_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Desired, encode
from fleet_protocol.root import KeyRule, Root, make_root, sign_root

ROOT_KEY, RELEASE, SECOND_RELEASE, DIRECTOR, NEW_DIRECTOR, STRANGER = (
    PrivateKey(bytes([number]) * 32) for number in range(11, 17)
)
NOW_NS = 1_790_000_000 * 10**9
DAY_NS = 86_400 * 10**9


def root(
    version: int,
    *,
    director: PrivateKey = DIRECTOR,
    release: PrivateKey = RELEASE,
    expires_ns: int = NOW_NS + 365 * DAY_NS,
    fleet: str = "f",
) -> Root:
    return make_root(
        version=version,
        fleet=fleet,
        issued_at_ns=1,
        expires_ns=expires_ns,
        root=KeyRule((ROOT_KEY.public,), 1),
        release=KeyRule((release.public,), 1),
        director=KeyRule((director.public,), 1),
    )


def signed_root(version: int, **changes: object) -> bytes:
    return sign_root(root(version, **changes), [ROOT_KEY])  # type: ignore[arg-type]  # `root` has the types


def pin(folder: Path, envelope: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pinned.json"
    path.write_bytes(envelope)
    return path


def desired(generation: int = 1, **changes: object) -> Desired:
    fields = {"issued_at_ns": NOW_NS, "expires_ns": NOW_NS + 14 * DAY_NS, "root_version": 1, **changes}
    assignment = Assignment(model="m", version="1.0.0", bundle="a" * 64)
    return Desired(fleet="f", device="d", generation=generation, assignments=[assignment], **fields)  # type: ignore[arg-type]  # the fields have their types


def signed(message: Desired, by: PrivateKey = DIRECTOR) -> bytes:
    return sign_envelope(DESIRED_TYPE, encode(message), [by])
