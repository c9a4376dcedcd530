"""`fleet keys root`: several people on different machines make, sign, change and check a trust root as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PrivateKey
from fleet_protocol.root import verify_first_root, verify_next_root
from fleet_server.cli import app
from fleet_server.cli.exits import exit_code_of
from fleet_server.errors import ConfigError

NAMES = ("anna", "ben", "release", "second", "director", "director2")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The key ids by name; the files lie in `tmp_path`."""
    made = {name: PrivateKey.generate() for name in NAMES}
    for name, key in made.items():
        key.save(tmp_path / f"{name}.key")
    return {name: key.public.key_id for name, key in made.items()}


def fleet(folder: Path, *arguments: str) -> Any:
    """The JSON that a command printed; raises what it raised."""
    named = [str(folder / text) if text.endswith((".key", ".pub", ".json")) else text for text in arguments]
    result = CliRunner().invoke(app, ["keys", *named, "--json"])
    if result.exception is not None:
        raise result.exception
    return msgspec.json.decode(result.stdout)


def init(folder: Path, *more: str) -> Any:
    roles = ("--root", "anna.pub", "--root", "ben.pub", "--root-threshold", "2")
    others = ("--release", "release.pub", "--release", "second.pub", "--director", "director.pub")
    return fleet(folder, "root", "init", "1.json", "--fleet", "demo", *roles, *others, *more)


def test_two_people_sign_one_after_the_other_and_then_it_verifies(tmp_path: Path, keys: dict[str, str]) -> None:
    assert init(tmp_path, "--key", "anna.key")["signed_by"] == [keys["anna"]]
    with pytest.raises(ProtocolError, match="2 needed"):
        fleet(tmp_path, "root", "verify", "1.json")

    assert fleet(tmp_path, "root", "sign", "1.json", "--key", "ben.key")["signed_by"] == sorted(
        [keys["anna"], keys["ben"]]
    )
    assert fleet(tmp_path, "root", "verify", "1.json") == {"fleet": "demo", "newest": 1, "holds": True}
    assert fleet(tmp_path, "root", "show", "1.json")["roles"]["root"]["threshold"] == 2


def test_a_director_is_rotated_by_the_next_root(tmp_path: Path, keys: dict[str, str]) -> None:
    init(tmp_path, "--key", "anna.key", "--key", "ben.key")
    changes = ("--add-director", "director2.pub", "--remove", "director.pub")
    made = fleet(tmp_path, "root", "rotate", "1.json", "--out", "2.json", *changes, "--key", "anna.key")
    assert (made["version"], made["roles"]["director"]["key_ids"]) == (2, [keys["director2"]])
    with pytest.raises(ProtocolError, match=r"2\.json: 1 valid"):
        fleet(tmp_path, "root", "verify", "1.json", "2.json")

    fleet(tmp_path, "root", "sign", "2.json", "--key", "ben.key")
    assert fleet(tmp_path, "root", "verify", "1.json", "2.json")["newest"] == 2
    first = verify_first_root((tmp_path / "1.json").read_bytes(), fleet="demo")
    assert verify_next_root(first, (tmp_path / "2.json").read_bytes()).version == 2


def test_a_release_key_is_revoked_by_its_id(tmp_path: Path, keys: dict[str, str]) -> None:
    init(tmp_path)
    made = fleet(tmp_path, "root", "revoke", "1.json", keys["second"][:12], "--out", "2.json")
    assert made["roles"]["release"] == {"key_ids": [keys["release"]], "threshold": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("root", "revoke", "1.json", "anna.pub", "--out", "2.json"), "root would have 1 keys for a threshold of 2"),
        (("root", "revoke", "1.json", "0000000000", "--out", "2.json"), "neither a key file nor the id"),
        (("root", "rotate", "1.json", "--out", "1.json"), "exists already"),
        (("root", "rotate", "1.json", "--out", "2.json", "--add-director", "anna.pub"), "has another role too"),
        (("root", "sign", "anna.pub", "--key", "anna.key"), "not a signed envelope"),
        (("root", "show", "none.json"), "cannot read"),
    ],
)
def test_a_root_that_could_not_work_is_not_written(
    tmp_path: Path, keys: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    init(tmp_path)
    before = (tmp_path / "1.json").read_bytes()
    with pytest.raises((ProtocolError, ConfigError), match=says) as raised:
        fleet(tmp_path, *arguments)
    assert exit_code_of(raised.value) in (1, 2)
    assert not (tmp_path / "2.json").exists()
    assert (tmp_path / "1.json").read_bytes() == before
