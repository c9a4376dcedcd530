"""Ed25519 keys in PEM files, named by a key id that anyone can recompute.

The key id is the SHA-256 of the raw 32-byte public key in hexadecimal. The files are those of RFC 8410
(SubjectPublicKeyInfo and PKCS #8), whose DER for Ed25519 is a fixed prefix and the 32 bytes, so `openssl` reads and
writes them too. libsodium (PyNaCl) does the mathematics: it costs a device 1 MB of memory, OpenSSL 9 MB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from fleet_protocol.errors import KeyFileError

_MAX_KEY_FILE_BYTES = 16 * 1024
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_PUBLIC_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, section 10.1
_PRIVATE_PREFIX = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410, section 10.3


class PublicKey:
    """A key that verifies. `raw` is its 32 bytes."""

    __slots__ = ("_key", "key_id")

    def __init__(self, raw: bytes) -> None:
        self._key = VerifyKey(raw)
        self.key_id = hashlib.sha256(raw).hexdigest()

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read a PEM file. Raises KeyFileError."""
        return cls(_read_pem(path, "PUBLIC KEY", _PUBLIC_PREFIX))

    @property
    def raw(self) -> bytes:
        """Its 32 bytes."""
        return bytes(self._key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` over `message` was made by this key's private half."""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            self._key.verify(message, signature)
        except BadSignatureError:
            return False
        return True

    def pem(self) -> bytes:
        """The key as PEM text."""
        return _pem("PUBLIC KEY", _PUBLIC_PREFIX + bytes(self._key))

    def __repr__(self) -> str:
        return f"PublicKey({self.key_id[:16]})"


class PrivateKey:
    """A key that signs. Its `repr` shows only the key id."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key from the system's randomness."""
        return cls(os.urandom(_KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read an unencrypted PEM file. Raises KeyFileError."""
        return cls(_read_pem(path, "PRIVATE KEY", _PRIVATE_PREFIX))

    @property
    def seed(self) -> bytes:
        """Its 32 secret bytes, for another library that signs."""
        return bytes(self._key)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message`."""
        return self._key.sign(message).signature

    def save(self, path: Path) -> None:
        """Write the private half to `path` and the public half beside it as `.pub`.

        The private file has mode 0600 and is never written over an existing one. Raises KeyFileError.
        """
        public_path = path.with_suffix(".pub")
        if public_path == path:
            raise KeyFileError(f"{path} is the name of a public key file: name the private one otherwise")
        pem = _pem("PRIVATE KEY", _PRIVATE_PREFIX + bytes(self._key))
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise KeyFileError(f"cannot write the key file {path}: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
            public_path.write_bytes(self.public.pem())
        except OSError as error:
            raise KeyFileError(f"cannot write the key files of {path}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.key_id[:16]})"


def _pem(label: str, der: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode('ascii')}\n-----END {label}-----\n".encode("ascii")


def _read_pem(path: Path, label: str, prefix: bytes) -> bytes:
    """The 32 raw bytes in a PEM file with this label and DER prefix. Raises KeyFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from None
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path} is too large to be a key file")
    _, begun, rest = data.partition(f"-----BEGIN {label}-----".encode())
    body, ended, _ = rest.partition(f"-----END {label}-----".encode())
    if not begun or not ended:
        raise KeyFileError(f"{path} is not an unencrypted {label.lower()} in PEM form")
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        raise KeyFileError(f"{path} is not a {label.lower()} in PEM form: its base64 is damaged") from None
    if not der.startswith(prefix) or len(der) != len(prefix) + _KEY_BYTES:
        raise KeyFileError(f"{path} is not an Ed25519 {label.lower()}")
    return der[len(prefix) :]
