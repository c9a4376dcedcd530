"""The fleet's certificate authority: it signs the certificates of devices, of the broker and of the server itself.

Invariants:
- only a request's public key is taken from it; name, life and purposes are the authority's own;
- a device's certificate is good for clients only, the broker's for servers only, so neither passes for the other;
- serial numbers are 128 random bits; no certificate outlives the authority's;
- what devices check, the authority's own certificate and the broker's, is good from 1970 on: a device without a clock
  must be able to, and a start of validity protects nobody, since what is not yet issued does not exist;
- the list of revoked certificates (RFC 5280, section 5) never expires in practice: a broker that outlives the
  server's absence must not lock everybody out.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet_server.errors import ConfigError
from fleet_server.identity.signing_requests import DeviceKey

AUTHORITY_YEARS = 20
BROKER_DAYS = 825
MAX_PEM_BYTES = 64 * 1024
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
_BACKDATED = timedelta(hours=1)  # a broker's clock may be behind the server's
_LIST_YEARS = 20
_LIST_BACKDATED = timedelta(days=1)  # a broker whose clock is behind refuses everybody over a list of the future
_SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
_AUTHORITY_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate. `serial` is 32 hexadecimal digits; it ends at `expires_ns`."""

    pem: str
    serial: str
    expires_ns: int


class CertificateAuthority:
    """A P-256 key and its self-signed certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def create(cls, *, fleet: str, certificate_file: Path, key_file: Path, now: datetime) -> CertificateAuthority:
        """Make an authority and write it, the key with mode 0600. Raises ConfigError, also where files are there."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgefleet authority of {fleet}"[:64])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, key.public_key(), _ALWAYS, now + timedelta(days=365 * AUTHORITY_YEARS))
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_AUTHORITY_USAGE, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(key_file, _key_pem(key))
        try:
            certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        except OSError as error:
            raise ConfigError(f"cannot write {certificate_file}: {error.strerror}") from None
        return cls(certificate, key)

    @classmethod
    def load(cls, *, certificate_file: Path, key_file: Path) -> CertificateAuthority:
        """Read an authority. Raises ConfigError."""
        try:
            certificate = x509.load_pem_x509_certificate(_read(certificate_file))
            key = serialization.load_pem_private_key(_read(key_file), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(f"{certificate_file} and {key_file} are not a certificate and its key in PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{key_file} is not the elliptic curve key of {certificate_file}")
        try:
            is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_authority = False
        if not is_authority:
            raise ConfigError(f"{certificate_file} is not an authority's certificate")
        return cls(certificate, key)

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue_to_device(
        self, key: DeviceKey, *, fleet: str, device: str, now: datetime, life: timedelta
    ) -> IssuedCertificate:
        """A client certificate whose common name is the device's id."""
        alternative = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:edgefleet:{fleet}:{device}")])
        return self._issue(
            device, key, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, begins=now - _BACKDATED, expires=now + life
        )

    def issue_to_client(self, name: str, *, now: datetime, life: timedelta) -> tuple[IssuedCertificate, str]:
        """A client certificate for the server itself, and its new key in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        issued = self._issue(name, key.public_key(), None, purpose, begins=now - _BACKDATED, expires=now + life)
        return issued, _key_pem(key).decode("ascii")

    def issue_to_broker(self, hosts: Sequence[str], *, now: datetime) -> tuple[IssuedCertificate, str]:
        """A server certificate for host names and IP addresses, and its new key in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
        expires = now + timedelta(days=BROKER_DAYS)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        issued = self._issue(hosts[0][:64], key.public_key(), alternative, purpose, begins=_ALWAYS, expires=expires)
        return issued, _key_pem(key).decode("ascii")

    def revocation_list(self, serials: Iterable[tuple[str, int]], *, now: datetime) -> bytes:
        """The PEM list of revoked certificates: (serial, when it was revoked in UTC ns)."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _LIST_BACKDATED)
            .next_update(now + timedelta(days=365 * _LIST_YEARS))
        )
        for serial, revoked_ns in serials:
            revoked_at = datetime.fromtimestamp(revoked_ns // 10**9, UTC)
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(revoked_at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        key: DeviceKey,
        alternative: x509.SubjectAlternativeName | None,
        purpose: x509.ObjectIdentifier,
        *,
        begins: datetime,
        expires: datetime,
    ) -> IssuedCertificate:
        expires = min(expires, self._certificate.not_valid_after_utc).replace(microsecond=0)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            _builder(subject, key, begins, expires)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNING, critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternative is not None:
            builder = builder.add_extension(alternative, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            serial=f"{certificate.serial_number:032x}",
            expires_ns=int(expires.timestamp()) * 10**9,
        )


def write_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600. Raises ConfigError, also where it is there already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _builder(subject: x509.Name, key: DeviceKey, begins: datetime, expires: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(int.from_bytes(os.urandom(16)) >> 1 | 1 << 126)  # positive and of one length
        .not_valid_before(begins)
        .not_valid_after(expires)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
