"""What the authority signs, and what it never does."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet_server.errors import ConfigError, InvalidRequestError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.signing_requests import key_sha256, proves_possession, read_request
from tests.server.identity.authority import key_pem, make_authority, new_request, request_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def _issue(authority: CertificateAuthority, csr: str, device: str = "pi-1", days: int = 90) -> x509.Certificate:
    issued = authority.issue_to_device(
        read_request(csr), fleet="demo", device=device, now=NOW, life=timedelta(days=days)
    )
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert issued.serial == f"{certificate.serial_number:032x}"
    assert issued.expires_ns == int(certificate.not_valid_after_utc.timestamp()) * 10**9
    return certificate


def test_a_request_for_another_name_gets_its_own_name_and_nothing_else_it_asked_for(tmp_path: Path) -> None:
    csr = request_of(ec.generate_private_key(ec.SECP256R1()), "fleet.server", extra=True)
    certificate = _issue(make_authority(tmp_path), csr, "pi-1")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["pi-1"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in alternative] == ["urn:edgefleet:demo:pi-1"]
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_a_safe_kind_of_key_gets_a_certificate_and_proves_its_possession(tmp_path: Path, make: object) -> None:
    assert callable(make)
    key, authority = make(), make_authority(tmp_path)
    csr = request_of(key)
    issued = authority.issue_to_device(read_request(csr), fleet="f", device="d", now=NOW, life=timedelta(days=1))
    message = b"edgefleet certificate renewal 1\0f\0d\0" + csr.encode()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        proof = key.sign(message)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        proof = key.sign(message, ec.ECDSA(hashes.SHA256()))
    else:
        proof = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    assert proves_possession(issued.pem, proof, fleet="f", device="d", csr=csr)
    assert not proves_possession(issued.pem, proof, fleet="f", device="other", csr=csr)
    assert not proves_possession(issued.pem, proof[:-1], fleet="f", device="d", csr=csr)
    assert not proves_possession(issued.pem, b"", fleet="f", device="d", csr=new_request())


@pytest.mark.parametrize(
    ("csr", "says"),
    [
        (lambda: request_of(rsa.generate_private_key(65537, 1024)), "must be P-256"),  # noqa: S505 - refused
        (lambda: request_of(ec.generate_private_key(ec.SECP256K1())), "must be P-256"),
        (lambda: "nonsense", "not a PKCS#10"),
        (lambda: "", "not a PKCS#10"),
        (lambda: "é", "not a PKCS#10"),
        (lambda: new_request() + "x" * 20_000, "at most"),
    ],
)
def test_a_weak_or_malformed_request_is_refused_in_words(csr: object, says: str) -> None:
    assert callable(csr)
    with pytest.raises(InvalidRequestError, match=says):
        read_request(csr())


def test_a_request_whose_signature_another_key_made_is_refused() -> None:
    """The key of somebody else, whose public half anybody may know, in a request signed with one's own."""
    mine = ed25519.Ed25519PrivateKey.generate()
    theirs = ed25519.Ed25519PrivateKey.generate()
    csr = request_of(mine)
    der = base64.b64decode("".join(csr.splitlines()[1:-1]))
    forged = der.replace(mine.public_key().public_bytes_raw(), theirs.public_key().public_bytes_raw())
    assert forged != der
    pem = (
        "-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.b64encode(forged).decode()
        + "\n-----END CERTIFICATE REQUEST-----\n"
    )
    assert read_request(csr) is not None
    with pytest.raises(InvalidRequestError, match="not made by its key"):
        read_request(pem)


def test_serial_numbers_are_random_and_of_one_length(tmp_path: Path) -> None:
    authority, csr = make_authority(tmp_path), new_request()
    serials = {_issue(authority, csr).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert all(number.bit_length() == 127 for number in serials)


def test_no_certificate_outlives_the_authority_and_a_device_without_a_clock_can_check_the_brokers(
    tmp_path: Path,
) -> None:
    authority = make_authority(tmp_path)
    own = x509.load_pem_x509_certificate(authority.pem.encode())
    assert _issue(authority, new_request(), days=365 * 40).not_valid_after_utc == own.not_valid_after_utc
    broker, _ = authority.issue_to_broker(["mqtt.example.com", "10.0.0.7"], now=NOW)
    certificate = x509.load_pem_x509_certificate(broker.pem.encode())
    assert certificate.not_valid_before_utc == own.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH], "the broker's passes for no device's"


def test_the_list_of_revoked_certificates_is_signed_and_does_not_run_out(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    pem = authority.revocation_list([("00ff" * 8, 5 * 10**18 // 3)], now=NOW)
    revoked = x509.load_pem_x509_crl(pem)
    public = x509.load_pem_x509_certificate(authority.pem.encode()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert revoked.is_signature_valid(public)
    assert [f"{entry.serial_number:032x}" for entry in revoked] == ["00ff" * 8]
    assert revoked.next_update_utc is not None
    assert revoked.next_update_utc > NOW + timedelta(days=3650)


def test_the_key_is_its_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="cannot write"):
        make_authority(tmp_path)
    again = CertificateAuthority.load(certificate_file=tmp_path / "ca.crt", key_file=tmp_path / "ca.key")
    assert again.pem == authority.pem
    other = make_authority(tmp_path / "other")
    assert other.pem != authority.pem
    with pytest.raises(ConfigError, match="is not the elliptic curve key"):
        CertificateAuthority.load(certificate_file=tmp_path / "ca.crt", key_file=tmp_path / "other" / "ca.key")
    for wrong in (b"", b"nonsense"):
        (tmp_path / "bad").write_bytes(wrong)
        with pytest.raises(ConfigError):
            CertificateAuthority.load(certificate_file=tmp_path / "ca.crt", key_file=tmp_path / "bad")
    with pytest.raises(ConfigError, match="cannot read"):
        CertificateAuthority.load(certificate_file=tmp_path / "none", key_file=tmp_path / "ca.key")


def test_a_device_certificate_is_not_taken_for_an_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_to_device(key.public_key(), fleet="f", device="d", now=NOW, life=timedelta(days=9))
    (tmp_path / "d.crt").write_text(issued.pem)
    (tmp_path / "d.key").write_text(key_pem(key))
    with pytest.raises(ConfigError, match="not an authority"):
        CertificateAuthority.load(certificate_file=tmp_path / "d.crt", key_file=tmp_path / "d.key")
    assert key_sha256(key.public_key()) == key_sha256(read_request(request_of(key)))
