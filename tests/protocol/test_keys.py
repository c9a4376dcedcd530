"""Key files: what is written is read back, private stays private, and anything else is one clear error."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from pathlib import Path

import pytest

from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PrivateKey, PublicKey
from tests.real_servers.requirements import require_program

# RFC 8032, section 7.1, test 2
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_rfc_8032() -> None:
    key = PrivateKey(SEED)

    assert key.sign(b"\x72") == SIGNATURE
    assert key.public.verifies(SIGNATURE, b"\x72")
    assert key.public.key_id == hashlib.sha256(PUBLIC).hexdigest()


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, SIGNATURE[:-1], SIGNATURE + b"\x00", b"\xff" * 64])
def test_anything_but_the_signature_does_not_verify(signature: bytes) -> None:
    assert not PrivateKey(SEED).public.verifies(signature, b"\x72")
    assert not PrivateKey(SEED).public.verifies(SIGNATURE, b"\x73")


def test_saved_keys_are_read_back_and_only_their_owner_may_read_the_private_half(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    key.save(tmp_path / "release.pem")

    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
    assert PrivateKey.load(tmp_path / "release.pem").public.key_id == key.public.key_id
    assert PublicKey.load(tmp_path / "release.pub").key_id == key.public.key_id


def test_openssl_reads_what_is_saved_and_the_other_way_round(tmp_path: Path) -> None:
    openssl = require_program("openssl")
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    key = PrivateKey.generate()
    key.save(ours)
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", theirs], check=True, capture_output=True)

    public = subprocess.run([openssl, "pkey", "-in", ours, "-pubout"], check=True, capture_output=True).stdout
    der = subprocess.run(
        [openssl, "pkey", "-in", theirs, "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout

    assert public == key.public.pem()
    assert PrivateKey.load(theirs).public.key_id == hashlib.sha256(der[-32:]).hexdigest()


def test_two_keys_are_never_alike() -> None:
    assert PrivateKey.generate().public.key_id != PrivateKey.generate().public.key_id


def test_a_private_key_file_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "release.pem"
    path.write_text("precious")

    with pytest.raises(KeyFileError, match="File exists"):
        PrivateKey.generate().save(path)
    assert path.read_text() == "precious"


def test_a_private_key_is_never_lost_under_its_own_public_half(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="name the private one otherwise"):
        PrivateKey.generate().save(tmp_path / "release.pub")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_key_file_error(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot write"):
        PrivateKey.generate().save(tmp_path / "absent" / "release.pem")
    with pytest.raises(KeyFileError, match="cannot read"):
        PublicKey.load(tmp_path / "absent.pub")


PEM = PrivateKey(SEED).public.pem().decode()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not a key",
        "\x00" * 100,
        PEM.replace("MCow", "MC!w"),
        PEM.replace("MCow", "MCowMCow"),
        PEM.replace("-----END PUBLIC KEY-----", ""),
        PEM.replace("PUBLIC", "PRIVATE"),
        PEM.replace("PUBLIC", "ENCRYPTED PRIVATE"),
        PEM.replace("BQYDK2Vw", "BQYDK2Vu"),
        PEM + "x" * 20_000,
    ],
    ids=["empty", "text", "zeros", "base64", "too long", "no end", "private", "encrypted", "X25519", "huge"],
)
def test_a_file_that_is_no_public_key_is_a_key_file_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key.pub"
    path.write_text(content)

    with pytest.raises(KeyFileError, match=r"key\.pub"):
        PublicKey.load(path)
    with pytest.raises(KeyFileError, match=r"key\.pub"):
        PrivateKey.load(path)


def test_a_key_shows_only_its_id() -> None:
    key = PrivateKey(SEED)

    assert repr(key) == f"PrivateKey({key.public.key_id[:16]})"
    assert SEED.hex()[:8] not in repr(key)
