"""Checks a chain of audit entries: pure functions of the entries, wherever they were read.

An entry's hash is the SHA-256 of the previous entry's hash and the entry's content as JSON with sorted keys. A chain
holds when, from its first entry on, in this order:
1. ids count up from 1 without a gap: nothing was removed or reordered;
2. each entry names the hash of the one before: nothing was inserted;
3. each entry's hash is that of its content: nothing was changed;
4. the entry of every pinned head is there with the pinned hash: nothing was cut off at the end, nor written anew.

A seal is a head, signed with a key that is kept away from the server: who rewrites the log cannot sign again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from fleet_protocol.envelope import sign_envelope, verify_envelope
from fleet_protocol.errors import SignatureError
from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_server.errors import InvalidRequestError

FIRST_HASH = "0" * 64
SEAL_TYPE = "application/vnd.edgefleet.audit-seal+json"
MAX_LINE_BYTES = 4 * 1024 * 1024
_HASH_CHARS = 64


class Head(Struct, frozen=True, kw_only=True):
    """The newest entry of a log, as HASH:ID: whoever knows it notices when the log loses or changes it."""

    id: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read HASH:ID. Raises InvalidRequestError."""
        digest, _, number = text.strip().partition(":")
        is_hash = len(digest) == _HASH_CHARS and all(char in "0123456789abcdef" for char in digest)
        if not is_hash or not (number.isascii() and number.isdigit() and 0 < len(number) < 19):
            raise InvalidRequestError("a head is HASH:ID as `fleet audit head` prints it")
        return cls(id=int(number), hash=digest)

    def __str__(self) -> str:
        return f"{self.hash}:{self.id}"


class ChainEntry(Struct, frozen=True, kw_only=True):
    """One entry with what chains it; also one line of an export."""

    id: int
    at_ns: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous_hash: str
    hash: str


class ChainCheck(Struct, frozen=True, kw_only=True):
    """What a check found: how many entries held, and the first that did not."""

    entries: int
    head: Head | None
    first_broken_id: int | None = None
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.first_broken_id is None


class Seal(Struct, frozen=True, kw_only=True):
    """What a seal signs: at `at_ns` the log of `fleet` was whole, and this was its head."""

    schema: int = 1
    fleet: str
    id: int
    hash: str
    at_ns: int


def hash_of(previous: str, content: Mapping[str, Any]) -> str:
    """The hash of an entry with that content after the entry with the hash `previous`."""
    return hashlib.sha256(previous.encode() + msgspec.json.encode(content, order="deterministic")).hexdigest()


def check_chain(entries: Iterable[ChainEntry], *, pinned: Sequence[Head] = ()) -> ChainCheck:
    """Whether a whole log holds, oldest entry first, and has every pinned head."""
    wanted: dict[int, set[str]] = {}
    for pin in pinned:
        wanted.setdefault(pin.id, set()).add(pin.hash)
    last: Head | None = None
    for entry in entries:
        count, previous = (last.id, last.hash) if last else (0, FIRST_HASH)
        reason = _wrong(entry, expected_id=count + 1, previous=previous, wanted=wanted.get(entry.id, set()))
        if reason:
            return ChainCheck(entries=count, head=last, first_broken_id=entry.id, reason=reason)
        last = Head(id=entry.id, hash=entry.hash)
    count = last.id if last else 0
    beyond = min((number for number in wanted if number > count or number < 1), default=None)
    if beyond is not None:
        reason = f"the log ends at entry {count}, and entry {beyond} was pinned"
        return ChainCheck(entries=count, head=last, first_broken_id=count + 1, reason=reason)
    return ChainCheck(entries=count, head=last)


def read_export(file: BinaryIO) -> Iterator[ChainEntry]:
    """The entries of an export, one JSON object a line. Raises InvalidRequestError with the line's number."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRequestError(f"line {number} exceeds {MAX_LINE_BYTES} bytes: it is no entry")
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=ChainEntry)
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"line {number} is no entry of an audit log: {error}") from None


def make_seal(head: Head, *, fleet: str, keys: Sequence[PrivateKey], at_ns: int) -> bytes:
    """The head of a log that was just checked, in a signed envelope."""
    seal = Seal(fleet=fleet, id=head.id, hash=head.hash, at_ns=at_ns)
    return sign_envelope(SEAL_TYPE, msgspec.json.encode(seal), keys)


def read_seal(envelope: bytes, trusted: Sequence[PublicKey]) -> Seal:
    """What a seal says, signed by one of `trusted`. Raises InvalidRequestError."""
    try:
        seal = msgspec.json.decode(verify_envelope(envelope, SEAL_TYPE, trusted, 1), type=Seal)
    except SignatureError as error:
        raise InvalidRequestError(f"the seal cannot be trusted: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the seal is malformed: {error}") from None
    if seal.schema != 1:
        raise InvalidRequestError(f"the seal has the schema {seal.schema}: this release reads 1")
    return seal


def _wrong(entry: ChainEntry, *, expected_id: int, previous: str, wanted: set[str]) -> str:
    if entry.id != expected_id:
        return f"entry {expected_id} should come here: entries were removed, inserted or reordered"
    if entry.previous_hash != previous:
        return "it does not follow the entry before it"
    content = {
        "id": entry.id,
        "at_ns": entry.at_ns,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
    }
    if entry.hash != hash_of(previous, content):
        return "its content was changed: it does not have its hash"
    if wanted - {entry.hash}:
        return "its hash is not the one that was pinned: the log was written anew"
    return ""
