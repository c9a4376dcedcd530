"""The trust root: which keys may change the root, release a bundle, and direct devices. Pure.

Modelled on The Update Framework's root (specification 1.0, sections 4.3 and 5.3), without its other files: a bundle's
manifest takes the place of `targets`, a signed desired state that of `snapshot` and `timestamp`.

A root travels in a DSSE envelope of its own type. Invariants, in the order in which they are checked:
1. the envelope is small and holds a root; a root has one encoding and no fields but those of its schema;
2. every key has the id that its bytes give, every role names keys that are there, and enough of them for its
   threshold; no key is there that no role names, and no key that directs may also release or change the root: it lies
   on a server that is online;
3. enough of its own root keys signed it;
4. for a root that follows another: it is of the same fleet, its version is the next one, and enough root keys of the
   one before signed it too (continuity). Two roots of one version therefore never follow one another.
Expiry is not judged here: a root that has expired still vouches for the next one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.envelope import read_unverified, sign_envelope, verify_envelope
from fleet_protocol.errors import MalformedMessage, SignatureError, UnsupportedSchema
from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_protocol.messages import Generation, TimeNs
from fleet_protocol.names import FleetId, Sha256

ROOT_TYPE = "application/vnd.edgefleet.root+json"
ROOT_SCHEMA = 1
MAX_ROOT_BYTES = 64 * 1024
MAX_KEYS = 64
MAX_ROOTS = 256
"""Roots that a device walks from the one it pinned: beyond, it must pin a newer one."""

_RAW_KEY_BYTES = 32


def _current_schema() -> int:
    return ROOT_SCHEMA


class KeyRule(NamedTuple):
    """Signatures that count: at least `threshold` different ones of `keys`."""

    keys: tuple[PublicKey, ...]
    threshold: int


class Role(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ids of the keys of a role, sorted, and how many different ones must sign."""

    key_ids: Annotated[list[Sha256], Meta(min_length=1, max_length=MAX_KEYS)]
    threshold: Annotated[int, Meta(ge=1, le=MAX_KEYS)]


class Root(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of the trust root. `keys` are raw Ed25519 public keys in base64, by key id."""

    schema: int = field(default_factory=_current_schema)
    version: Generation
    fleet: FleetId
    issued_at_ns: TimeNs
    expires_ns: TimeNs
    keys: Annotated[dict[Sha256, Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=MAX_KEYS)]
    root: Role
    release: Role
    director: Role

    def __post_init__(self) -> None:
        for key_id, text in self.keys.items():
            if _public_key(text).key_id != key_id:
                raise ValueError(f"the key {key_id[:16]} has another id than its bytes give")
        for name in ROLES:
            self._check_role(name, getattr(self, name))
        if unused := set(self.keys) - {key_id for name in ROLES for key_id in getattr(self, name).key_ids}:
            raise ValueError(f"no role names the key {min(unused)[:16]}: leave it out")
        if both := set(self.director.key_ids) & {*self.root.key_ids, *self.release.key_ids}:
            raise ValueError(
                f"the director key {min(both)[:16]} has another role too: it lies on a server, give it that role alone"
            )
        if self.expires_ns <= self.issued_at_ns:
            raise ValueError("a root's expires_ns does not lie after its issued_at_ns")

    def _check_role(self, name: str, role: Role) -> None:
        if role.key_ids != sorted(set(role.key_ids)):
            raise ValueError(f"the key ids of {name} are not sorted, or one is there twice")
        if missing := set(role.key_ids) - set(self.keys):
            raise ValueError(f"{name} names the key {min(missing)[:16]}, which is not among the keys")
        if role.threshold > len(role.key_ids):
            raise ValueError(f"{name} needs {role.threshold} signatures of {len(role.key_ids)} keys")

    def rule(self, name: str) -> KeyRule:
        """The keys and threshold of a role: "root", "release" or "director"."""
        role: Role = getattr(self, name)
        return KeyRule(tuple(_public_key(self.keys[key_id]) for key_id in role.key_ids), role.threshold)


ROLES = ("root", "release", "director")
_DECODER = msgspec.json.Decoder(Root)


def make_root(
    *, version: int, fleet: str, issued_at_ns: int, expires_ns: int, root: KeyRule, release: KeyRule, director: KeyRule
) -> Root:
    """The root of these roles. Raises MalformedMessage for one that could never be trusted."""
    rules = (root, release, director)
    keys = {key.key_id: key.raw for rule in rules for key in rule.keys}
    roles = [Role(key_ids=sorted({key.key_id for key in rule.keys}), threshold=rule.threshold) for rule in rules]
    try:
        made = Root(
            version=version,
            fleet=fleet,
            issued_at_ns=issued_at_ns,
            expires_ns=expires_ns,
            keys={key_id: base64.b64encode(raw).decode("ascii") for key_id, raw in keys.items()},
            root=roles[0],
            release=roles[1],
            director=roles[2],
        )
        return _decode(encode_root(made))
    except ValueError as error:
        raise MalformedMessage(f"not a trust root: {error}") from None


def encode_root(root: Root) -> bytes:
    """The one encoding of a root, which is signed."""
    return msgspec.json.encode(root, order="sorted")


def sign_root(root: Root, keys: Iterable[PrivateKey]) -> bytes:
    """The envelope of a root, signed by every key; `envelope.add_signatures` adds those of other people."""
    return sign_envelope(ROOT_TYPE, encode_root(root), keys)


def read_unverified_root(envelope: bytes) -> Root:
    """The root in an envelope without any check of who signed: for showing and making the next one."""
    _check_size(envelope)
    return _decode(read_unverified(envelope, ROOT_TYPE))


def verify_first_root(envelope: bytes, *, fleet: str) -> Root:
    """A root that is trusted because of where it came from: the one that a device or server pins.

    Raises SignatureError, MalformedMessage or UnsupportedSchema.
    """
    root = _verified(envelope, read_unverified_root(envelope).rule("root"))
    if root.fleet != fleet:
        raise SignatureError(f"the trust root is of the fleet {root.fleet}, this is {fleet}")
    return root


def verify_next_root(trusted: Root, envelope: bytes) -> Root:
    """The root that follows `trusted`: steps 1 to 4. Raises SignatureError, MalformedMessage or UnsupportedSchema."""
    root = _verified(envelope, read_unverified_root(envelope).rule("root"))
    if root.fleet != trusted.fleet:
        raise SignatureError(f"the trust root is of the fleet {root.fleet}, this is {trusted.fleet}")
    if root.version != trusted.version + 1:
        raise SignatureError(f"trust root {root.version} does not follow {trusted.version}: versions go up by one")
    try:
        return _verified(envelope, trusted.rule("root"))
    except SignatureError as error:
        raise SignatureError(
            f"trust root {root.version} is not signed by root {trusted.version}'s root keys: {error}"
        ) from None


def walk_chain(trusted: Root, envelopes: Iterable[bytes]) -> list[Root]:
    """The roots that follow `trusted`, each vouched for by the one before. Raises as `verify_next_root` does."""
    chain: list[Root] = []
    for envelope in envelopes:
        trusted = verify_next_root(trusted, envelope)
        chain.append(trusted)
    return chain


def _verified(envelope: bytes, rule: KeyRule) -> Root:
    return _decode(verify_envelope(envelope, ROOT_TYPE, rule.keys, rule.threshold))


def _check_size(envelope: bytes) -> None:
    if len(envelope) > MAX_ROOT_BYTES:
        raise SignatureError(f"a trust root of {len(envelope)} bytes exceeds the limit of {MAX_ROOT_BYTES}")


def _decode(payload: bytes) -> Root:
    try:
        root = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if (schema := _peek_schema(payload)) > ROOT_SCHEMA:
            raise UnsupportedSchema(
                f"the trust root has schema {schema}, this release reads {ROOT_SCHEMA}: upgrade it"
            ) from None
        raise MalformedMessage(f"not a trust root: {error}") from None
    if root.schema != ROOT_SCHEMA:
        raise UnsupportedSchema(f"the trust root has schema {root.schema}, this release reads {ROOT_SCHEMA}")
    if encode_root(root) != payload:
        raise MalformedMessage("not a trust root: it is not in its one encoding, so two of them could look alike")
    return root


class _SchemaOnly(Struct):
    schema: int = ROOT_SCHEMA


def _peek_schema(payload: bytes) -> int:
    try:
        return msgspec.json.decode(payload, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ROOT_SCHEMA


def _public_key(text: str) -> PublicKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _RAW_KEY_BYTES:
        raise ValueError("a key is not the base64 of 32 bytes")
    return PublicKey(raw)
