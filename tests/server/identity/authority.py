"""An authority and devices' keys for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.certificates import Issuing

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def make_authority(folder: Path, fleet: str = "demo") -> CertificateAuthority:
    """A new authority with its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return CertificateAuthority.create(
        fleet=fleet, certificate_file=folder / "ca.crt", key_file=folder / "ca.key", now=datetime.now(UTC)
    )


def make_issuing(folder: Path, *, life: timedelta = timedelta(days=90)) -> Issuing:
    """What a server issues with."""
    authority = make_authority(folder)
    return Issuing(authority=authority, life=life, broker_authority_pem=authority.pem)


def request_of(key: Key, name: str = "anything", *, extra: bool = False) -> str:
    """A PKCS#10 request by a library that is not the agent's."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if extra:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("fleet.server")]), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def new_request(name: str = "anything") -> str:
    """A request with a new P-256 key."""
    return request_of(ec.generate_private_key(ec.SECP256R1()), name)


def key_pem(key: Key) -> str:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
