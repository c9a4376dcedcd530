"""The agent's config: every mistake is one line that names the file and the setting, before anything starts."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.config import (
    AgentConfig,
    ArmSection,
    DeviceSection,
    HttpSection,
    LanesSection,
    ModelSection,
    MqttSection,
    RuntimeSection,
    ServerSection,
    TelemetrySection,
    TrustSection,
    UpdateSection,
    check_mqtt_url,
    load_config,
)
from edge_agent.errors import ConfigError

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "device": DeviceSection, "models.digits": ModelSection, "http": HttpSection, "mqtt": MqttSection,
    "server": ServerSection, "trust": TrustSection, "telemetry": TelemetrySection, "update": UpdateSection,
    "runtime": RuntimeSection, "lanes": LanesSection, "models.digits.arms.b": ArmSection,
}  # fmt: skip
WHOLE = """
data_dir = "data"

[device]
id = "press-7"
fleet = "plant"
labels = { line = "3" }

[models.digits]
path = "model.onnx"
version = "1.2.0"
task = "classification"
labels = ["no", "yes"]

[http]
port = 0
socket = "agent.sock"

[mqtt]
url = "mqtts://broker.example"
password_file = "secret"
certificate_file = "secret"
key_file = "secret"

[server]
url = "https://fleet.example"

[trust]
release_keys = ["secret"]
director_keys = ["secret"]

[telemetry]
window_s = 5

[update]
download_attempts = 3

[runtime]
threads = 2

[lanes]
max = 2

[models.digits.arms.b]
path = "model.onnx"
weight = 0.25
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "secret").write_text("s")
    return tmp_path


def load(folder: Path, text: str) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text)
    return load_config(path)


def refused(folder: Path, text: str) -> str:
    """The error's line."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    line = str(caught.value)
    assert line.startswith(f"{folder / 'agent.toml'}: ")
    assert "\n" not in line
    return line.removeprefix(f"{folder / 'agent.toml'}: ")


def test_a_whole_file_is_read_with_paths_relative_to_it(folder: Path) -> None:
    config = load(folder, WHOLE)

    assert config.data_dir == folder / "data"
    assert config.models["digits"].path == folder / "model.onnx"
    assert config.http.socket == folder / "agent.sock"
    assert config.trust is not None and config.trust.release_keys == [folder / "secret"]
    assert config.telemetry.window_s == 5.0


def test_an_empty_file_is_a_config_of_defaults(folder: Path) -> None:
    assert load(folder, "") == AgentConfig()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_setting_that_does_not_exist_is_told_in_every_section(folder: Path, section: str) -> None:
    line = refused(folder, WHOLE.replace(f"[{section}]", f"[{section}]\nno_such_setting = 1"))

    shown = section.replace(".digits", "[...]").replace(".b", "[...]")
    assert line == f"unknown setting '{shown}.no_such_setting'"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('[models.digits.arms.main]\npath = "model.onnx"', '"main" is the arm of the model\'s own file'),
        (
            '[models.digits.arms.x]\npath = "model.onnx"\nshadow = true\n'
            '[models.digits.arms.y]\npath = "model.onnx"\nshadow = true',
            "only one arm may be a shadow",
        ),
        ('[models.digits.arms.x]\npath = "absent.onnx"', "models.digits.arms.x.path: there is no file"),
        (
            '[models.other]\npath = "model.onnx"\n[models.other.arms.x]\npath = "absent.onnx"',
            "models.other.arms.x.path",
        ),
    ],
)
def test_arms_that_cannot_be_are_told(folder: Path, wrong: str, told: str) -> None:
    assert told in refused(folder, f"{WHOLE}\n{wrong}\n")


def test_more_lanes_at_least_than_at_most_are_refused(folder: Path) -> None:
    assert "lanes.max is 2, below lanes.min, which is 3" in refused(
        folder, WHOLE.replace("max = 2", "max = 2\nmin = 3")
    )


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("window = 5\n[runtime]", "window_s"), ("outbox_max_byte = 1\n[runtime]", "outbox_max_bytes")],
)
def test_a_misspelt_setting_is_guessed(folder: Path, wrong: str, right: str) -> None:
    assert refused(folder, f"[telemetry]\n{wrong}").endswith(f"did you mean '{right}'?")


def test_a_misspelt_section_is_guessed(folder: Path) -> None:
    assert refused(folder, "[telemetri]\nwindow_s = 5") == "unknown setting 'telemetri', did you mean 'telemetry'?"


def test_a_section_that_does_not_exist_is_told(folder: Path) -> None:
    assert refused(folder, "[zzz]") == "unknown setting 'zzz'"


def fields() -> list[tuple[str, str, Any]]:
    """(section, setting, type) of every setting in a section."""
    return [
        (section, entry.name, typing.get_type_hints(kind)[entry.name])
        for section, kind in SECTIONS.items()
        for entry in msgspec.structs.fields(kind)
    ]


@pytest.mark.parametrize(("section", "setting", "kind"), fields(), ids=lambda value: str(value)[:30])
def test_a_setting_of_the_wrong_type_is_told_by_its_name(folder: Path, section: str, setting: str, kind: Any) -> None:
    arguments = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    wrong = '"text"' if {int, float} & set(arguments) else "[[1]]"
    whole = WHOLE.partition("[models.digits.arms.b]")[0] if setting == "arms" else WHOLE
    without = re.sub(rf"(\[{re.escape(section)}\]\n(?:(?!\[).*\n)*?){setting} = .*\n", r"\1", whole)

    line = refused(folder, without.replace(f"[{section}]\n", f"[{section}]\n{setting} = {wrong}\n"))

    assert line.startswith(f"{section.replace('.digits', '[...]').replace('.b', '[...]')}.{setting}")
    assert "Expected" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[http]\nport = 65536", "http.port"),
        ("[http]\nport = -1", "http.port"),
        ("[http]\nmax_waiting = 0", "http.max_waiting"),
        ("[telemetry]\nwindow_s = 0", "telemetry.window_s"),
        ("[telemetry]\nwindow_s = nan", "telemetry.window_s"),
        ("[telemetry]\nconfirm_timeout_s = inf", "telemetry.confirm_timeout_s"),
        ("[telemetry]\noutbox_max_bytes = 1", "telemetry.outbox_max_bytes"),
        ("[runtime]\nthreads = 257", "runtime.threads"),
        ('[device]\nid = "Press 7"', "device.id"),
        ('[device]\nid = "a/b"', "device.id"),
        ("[device]", "missing required field `id`"),
        ('[device]\nid = "d"\nlabels = {"a b" = "c"}', "device.labels"),
        ('[models."no spaces"]\npath = "model.onnx"', "models"),
        ('[models.m]\npath = "model.onnx"\nversion = "1"', "version"),
        ('[models.m]\npath = "model.onnx"\ntask = "poetry"', "task"),
        ('[models.m]\npath = ""', "path"),
        ('[models.m]\npath = "absent.onnx"', "models.m.path: there is no file"),
        ('[models.m]\npath = "."', "models.m.path: there is no file"),
        ('[models.m]\npath = "a\\u0000b"', "path"),
        ('data_dir = "~no-such-user/data"', "data_dir: there is no home folder"),
        ("models = 3", "models"),
        ("x = ", "not TOML"),
        ("a = " + "[" * 5_000, "not TOML"),
        ("a = " + "9" * 5_000, "not TOML"),
        ("a = 1\na = 2", "not TOML"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_setting(folder: Path, text: str, says: str) -> None:
    assert says in refused(folder, text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('[device]\nid = "press-7"\nfleet = "plant"\nlabels = { line = "3" }', "", "[mqtt] needs a [device]"),
        ('data_dir = "data"', "", "[mqtt] needs data_dir"),
        ('key_file = "secret"', "", "belong together"),
        ('[server]\nurl = "https://fleet.example"', "", "[trust] needs [server]"),
        ('release_keys = ["secret"]', 'release_keys = ["secret"]\nrelease_threshold = 2', "trust.release_threshold"),
        ('director_keys = ["secret"]', 'director_keys = ["x"]', "trust.director_keys: there is no file"),
        ('release_keys = ["secret"]', "release_keys = []", "trust.release_keys"),
        ('password_file = "secret"', 'password_file = "absent"', "mqtt.password_file: there is no file"),
        ("mqtts://broker.example", "http://broker.example", "mqtt.url"),
        ("mqtts://broker.example", "broker.example:1883", "mqtt.url"),
        ("mqtts://broker.example", "mqtt://", "mqtt.url"),
        ("mqtts://broker.example", "mqtt://h:99999", "mqtt.url"),
        ("mqtts://broker.example", "mqtt://[::1", "mqtt.url"),
        ("mqtts://broker.example", "mqtt://me:secret@h", "must not hold a password"),
        ("https://fleet.example", "ftp://fleet.example", "server.url"),
        ("https://fleet.example", "https://", "server.url"),
        ("https://fleet.example", "https://[::1", "server.url"),
        ("https://fleet.example", "https://h:99999", "server.url"),
    ],
)
def test_parts_that_do_not_fit_together_are_told(folder: Path, old: str, new: str, says: str) -> None:
    assert old in WHOLE

    assert says in refused(folder, WHOLE.replace(old, new))


def test_a_password_in_the_brokers_address_is_not_repeated_in_the_error(folder: Path) -> None:
    assert "hunter2" not in refused(folder, WHOLE.replace("mqtts://broker", "mqtts://me:hunter2@broker"))


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_config_file_that_is_not_there_is_told(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the config file"):
        load_config(folder / name)


def test_a_config_file_of_other_bytes_is_told(folder: Path) -> None:
    (folder / "agent.toml").write_bytes(b"\xff\xfe\x00\x01")

    with pytest.raises(ConfigError, match="not TOML"):
        load_config(folder / "agent.toml")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("mqtt://broker", ("broker", 1883, False)),
        ("mqtts://broker", ("broker", 8883, True)),
        ("mqtt://10.0.0.1:2000", ("10.0.0.1", 2000, False)),
        ("mqtts://[::1]:2000", ("::1", 2000, True)),
    ],
)
def test_a_brokers_address_is_taken_apart(url: str, parts: tuple[str, int, bool]) -> None:
    assert check_mqtt_url(url) == parts


VALUES = (
    st.sampled_from(['"x"', "1", "-1", "0.5", "true", "[]", "{}", '["secret"]', "nan", "inf", "1979-05-27", '""'])
    | st.integers(-(2**70), 2**70).map(str)
)  # fmt: skip


@settings(
    deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # each example writes the file anew
@given(place=st.sampled_from(fields()), value=VALUES)
def test_any_value_of_any_setting_is_taken_or_told_in_one_line(
    folder: Path, place: tuple[str, str, Any], value: str
) -> None:
    section, setting, _ = place
    try:
        load(folder, f"[{section}]\n{setting} = {value}\n")
    except ConfigError as error:
        assert "\n" not in str(error)


def settings_named_in_documentation() -> dict[str, set[str]]:
    """Settings by section, from the first table of the documentation."""
    found: dict[str, set[str]] = {"": set()}
    section = ""
    agent_part = DOCUMENTATION.read_text(encoding="utf-8").partition("\n## The agent")[2].partition("\n## ")[0]
    for line in agent_part.splitlines():
        if not line.startswith("| "):
            continue
        cell = line.split("|")[1]
        heading = re.search(r"\[([A-Za-z_.]+)\]", cell) if "**" in cell else None
        if heading:
            section = heading[1].replace("NAME", "digits").replace("ARM", "b")
            found[section] = set()
        else:
            found[section] |= set(re.findall(r"`([a-z_]+)`", cell))
    return found


def test_every_setting_is_documented_and_nothing_else() -> None:
    documented = settings_named_in_documentation()

    expected = {name: {entry.name for entry in msgspec.structs.fields(kind)} for name, kind in SECTIONS.items()}
    top = {entry.name for entry in msgspec.structs.fields(AgentConfig)} - {name.partition(".")[0] for name in SECTIONS}
    assert documented == {"": top, **expected}
