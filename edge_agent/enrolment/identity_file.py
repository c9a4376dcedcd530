"""The file with a device's private key and its certificate: one file, so that they always belong together.

Invariants: mode 0600 from its first byte; replaced whole or not at all; a key and a certificate that do not belong
together are never written.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from msgspec import Struct

from edge_agent.durable_files import move_into_place
from edge_agent.enrolment.der import CertificateFacts, from_pem, private_key_pem, read_certificate, signing_request
from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PrivateKey

MAX_FILE_BYTES = 16 * 1024
RENEWAL_CONTEXT = b"edgefleet certificate renewal 1\0"


class NewKey(Struct, frozen=True, kw_only=True):
    """A key that has no certificate yet."""

    pem: str
    key: PrivateKey

    def request(self, device: str) -> str:
        """The request for its certificate."""
        return signing_request(self.key, device)

    @classmethod
    def generate(cls) -> NewKey:
        """From the system's randomness."""
        seed = os.urandom(32)
        return cls(pem=private_key_pem(seed), key=PrivateKey(seed))


class Identity(Struct, frozen=True, kw_only=True):
    """What an identity file holds."""

    key: PrivateKey
    certificate: CertificateFacts

    def prove(self, *, fleet: str, device: str, csr: str) -> str:
        """The proof, in base64, that whoever sends `csr` holds this identity's key."""
        message = RENEWAL_CONTEXT + b"\0".join(part.encode() for part in (fleet, device, csr))
        return base64.b64encode(self.key.sign(message)).decode("ascii")


def read_identity(path: Path) -> Identity:
    """Read an identity file. Raises ValueError, or OSError when it cannot be read."""
    try:
        key = PrivateKey.load(path)
    except KeyFileError as error:
        raise ValueError(str(error)) from None
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES).decode("ascii", "replace")
    return Identity(key=key, certificate=read_certificate(text))


def write_identity(path: Path, new: NewKey, *, certificate_pem: str, chain: list[str]) -> Identity:
    """Write key, certificate and chain. Raises ValueError when they do not belong together, OSError."""
    if new.key.public.raw not in from_pem("CERTIFICATE", certificate_pem):
        raise ValueError("the certificate is not for the key that was sent")
    facts = read_certificate(certificate_pem)
    write_private(path, "".join([new.pem, certificate_pem, *chain]))
    return Identity(key=new.key, certificate=facts)


def read_new_key(path: Path) -> NewKey | None:
    """A key that was written before a certificate came, None when there is none that can be used."""
    try:
        with path.open("rb") as file:
            pem = file.read(MAX_FILE_BYTES).decode("ascii", "replace")
        return NewKey(pem=pem, key=PrivateKey.load(path))
    except (OSError, KeyFileError):
        return None


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read, durably. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # one of an attempt that was cut short may have another mode
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(temporary, path)
