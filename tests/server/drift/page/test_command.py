"""`fleet drift report` as a person calls it: a real server with a real fleet's windows, and one file at the end."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from fleet_protocol.bundle_folder import sign_bundle, write_manifest
from fleet_protocol.manifest import Manifest
from fleet_server.cli import app
from fleet_server.cli.drift_report import default_name, read_reports, without_credentials, write_whole
from fleet_server.errors import ConfigError, FleetError
from tests.server.api.running import Bundle, Server, make_bundle, publish, running_server
from tests.server.drift import fleets
from tests.server.drift.page import examples
from tests.server.drift.page.reader import Reader


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def called(server: Server, *arguments: str) -> Result:
    environment = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"]}
    return CliRunner().invoke(app, ["drift", "report", *arguments], env=environment)


def publish_digits(server: Server, folder: Path) -> Manifest:
    """Publish a bundle with a reference of one feature; returns its manifest."""
    values = np.random.default_rng(1).normal(0, 1, 2_000)
    features = fleets.manifest({"brightness": values}).features
    manifest = replace(make_bundle(folder, server.release_keys).manifest, features=features)
    write_manifest(folder, manifest)
    bundle = Bundle(folder=folder, envelope=sign_bundle(folder, server.release_keys), manifest=manifest)
    assert publish(server, bundle).status_code == 201
    return manifest


def send(server: Server, made: Manifest, *, moved: float, devices: int = 12) -> None:
    """Windows of the last two hours, every ten minutes."""
    random, now_ns = np.random.default_rng(2), time.time_ns()
    windows = [
        fleets.window(
            made,
            f"pi-{device}",
            {"brightness": random.normal(moved, 1, 60)},
            sequence=place + 1,
            end_ns=now_ns - place * 600 * fleets.S,
        )
        for device in range(devices)
        for place in range(12)
    ]
    server.store.write("demo", windows)


def test_a_moved_fleet_gives_a_file_that_says_so(server: Server, here: Path, tmp_path: Path) -> None:
    send(server, publish_digits(server, tmp_path / "bundle"), moved=1.5)
    done = called(server, "digits", "--hours", "3")
    assert done.exit_code == 0, done.output
    assert "drift-digits.html is written." in done.output
    reader = Reader((here / "drift-digits.html").read_bytes())
    assert not reader.faults
    assert "drift" in reader.text
    assert "brightness" in reader.text
    assert "compared with: the reference" in reader.text
    assert server.url in reader.text
    assert server.keys["viewer"] not in reader.text
    assert list(here.iterdir()) == [here / "drift-digits.html"]


def test_json_names_the_file_and_the_verdicts(server: Server, here: Path, tmp_path: Path) -> None:
    send(server, publish_digits(server, tmp_path / "bundle"), moved=0.0)
    done = called(server, "digits", "1.0.0", "--out", str(here / "page.html"), "--json")
    assert done.exit_code == 0, done.output
    said = msgspec.json.decode(done.output)
    assert said["file"] == str(here / "page.html")
    assert [(one["version"], one["verdict"]) for one in said["reports"]] == [("1.0.0", "not_found")]
    assert (here / "page.html").stat().st_size > 10_000


def test_a_question_that_fails_leaves_no_file_and_an_old_one_as_it_was(server: Server, here: Path) -> None:
    old = here / "page.html"
    old.write_text("old")
    done = called(server, "digits", "--against", "nonsense", "--out", str(old))
    assert done.exit_code != 0
    assert old.read_text() == "old"
    assert list(here.iterdir()) == [old]


def test_a_file_that_cannot_be_is_refused_before_the_server_is_asked(here: Path) -> None:
    for target in (here, here / "missing" / "page.html"):
        done = CliRunner().invoke(
            app, ["drift", "report", "digits", "--out", str(target)], env={"EDGEFLEET_API_KEY": "k"}
        )
        assert isinstance(done.exception, ConfigError)
        assert "--out" in str(done.exception)


def test_a_file_is_replaced_whole_and_as_open_as_others(tmp_path: Path) -> None:
    target, other = tmp_path / "page.html", tmp_path / "other"
    write_whole(target, b"first")
    write_whole(target, b"second")
    other.write_bytes(b"")
    assert target.read_bytes() == b"second"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [other, target]
    target.unlink()
    target.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_whole(target, b"third")
    assert sorted(tmp_path.iterdir()) == [other, target]


@pytest.mark.parametrize("name", examples.SHAPES)
def test_reports_come_through_the_wire_as_they_were(name: str) -> None:
    reports = examples.SHAPES[name]()
    assert read_reports(msgspec.json.decode(msgspec.json.encode({"reports": reports}))) == reports


@pytest.mark.parametrize("answer", [None, [], {}, {"reports": [{"signal": 1}]}, {"reports": [{"model": "m"}]}])
def test_an_answer_of_another_version_is_told_as_such(answer: object) -> None:
    with pytest.raises(FleetError, match="cannot be read"):
        read_reports(answer)


def test_a_name_and_an_address_hold_nothing_they_should_not() -> None:
    assert default_name("digits", None) == "drift-digits.html"
    assert default_name("../a b", "1.0.0-rc.1+x/y") == "drift-_a_b-1.0.0-rc.1+x_y.html"
    assert without_credentials("https://user:secret@fleet.example.org/x") == "https://fleet.example.org/x"
    assert without_credentials("http://127.0.0.1:8080") == "http://127.0.0.1:8080"
