"""The server's config file: strict, and every refusal is one line that says where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fleet_protocol.keys import PrivateKey
from fleet_server.config import ROLE_NAMES, ServerConfig, _Section, load_config
from fleet_server.errors import ConfigError
from fleet_server.identity.operators import Role

_LEAST = 'fleet = "demo"\n[trust]\nrelease_keys = ["release.pub"]\ndirector_key = "director.key"\n'


def _write(folder: Path, text: str = _LEAST) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_the_least_config_has_working_defaults_below_its_own_folder(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path))
    assert config.data_dir == tmp_path / "data"
    assert config.database_url == f"sqlite:///{tmp_path}/data/fleet.db"
    assert config.telemetry_store_url == f"sqlite:///{tmp_path}/data/telemetry.db"
    assert config.trust.release_keys == [tmp_path / "release.pub"]
    assert (config.public_url, config.mqtt_url) == ("http://127.0.0.1:8080", "mqtt://127.0.0.1:1883")
    assert config.mqtt_password() is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flet = 'x'\n" + _LEAST, "unknown setting flet: did you mean fleet?"),
        (_LEAST + "[http]\nprot = 1\n", "unknown setting http.prot: did you mean http.port?"),
        (_LEAST + "[zzz]\n", "unknown setting zzz: there are: data_dir, database, deltas, drift"),
        (_LEAST + "[http]\nport = 70000\n", "http.port: Expected `int` <= 65535"),
        (_LEAST + "[http]\nport = '80'\n", "http.port: Expected `int`, got `str`"),
        (_LEAST + "[mqtt]\nprotocol = '4'\n", "mqtt.protocol: '4' is not one of 'auto', '5', '3.1.1'"),
        (_LEAST + "[mqtt]\nembedded = false\n", "mqtt.url is missing"),
        (_LEAST + "[mqtt]\nurl = 'tcp://x:1'\n", "mqtt.url 'tcp://x:1' is not understood: it starts with mqtt://"),
        (_LEAST + "[mqtt]\nurl = 'mqtt://x:99999'\n", "mqtt.url is not a URL"),
        (_LEAST + "[mqtt]\nusername = 'pi-1'\n", "mqtt.username 'pi-1' could be a device's name"),
        (_LEAST + "[mqtt]\nurl = 'mqtt://u:p@x:1'\n", "mqtt.url holds a secret"),
        (_LEAST + "[database]\nurl = 'postgresql+psycopg://u:p@h/d'\n", "database.url holds a secret"),
        (_LEAST + "[telemetry_store]\nurl = 'influxdb+http://h:1?token=x'\n", "telemetry_store.url holds a secret"),
        (
            _LEAST + "[telemetry_store]\nraw_retention_s = 5\n",
            "raw_retention_s: Expected `int` >= 3600",
        ),
        (_LEAST + "[oidc]\nissuer = 'http://login.test'\n", "oidc.issuer is not https"),
        (_LEAST + "[oidc]\nissuer = 'https://u:p@login.test'\n", "oidc.issuer holds a secret"),
        (_LEAST + "[oidc]\nclient_id = 'c'\n", "oidc.issuer is missing"),
        (_LEAST + "[oidc]\nissuer = 'https://login.test'\n", "oidc.client_id is missing"),
        (_LEAST + "[oidc]\nissuer = 'https://l.test'\nclient_id = 'c'\n", "oidc.roles is missing"),
        (
            _LEAST + "[oidc]\nissuer = 'https://l.test'\nclient_id = 'c'\n[oidc.roles]\ng = 'root'\n",
            "oidc.roles: 'g' gives 'root', which is not one of viewer, operator, approver, admin",
        ),
        (_LEAST + "[oidc]\ntoken = 'both'\n", "oidc.token: 'both' is not one of 'id', 'access'"),
        (_LEAST + "[limits]\nfailed_per_minute = -1\n", "limits.failed_per_minute: Expected `int` >= 0"),
        (_LEAST.replace('"demo"', '"De mo"'), "fleet: use 1 to 64 of a-z 0-9"),
        (_LEAST.replace('["release.pub"]', "[]"), "trust.release_keys: list at least one key"),
        (_LEAST.replace('["release.pub"]', "[3]"), "trust.release_keys[0]: expected a path"),
        ("fleet = 'x'", "Object missing required field `trust`"),
        ("fleet = ", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value).startswith(str(path))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path / "none.toml")


def test_secrets_come_from_files_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqtt.password").write_text("from file\n")
    config = load_config(_write(tmp_path, _LEAST + "[mqtt]\npassword_file = 'mqtt.password'\n"))
    assert config.mqtt_password() == "from file"
    monkeypatch.setenv("EDGEFLEET_MQTT_PASSWORD", "from environment")
    assert config.mqtt_password() == "from environment"
    monkeypatch.setenv("EDGEFLEET_DATABASE_URL", "postgresql+psycopg://u:p@h/d")
    assert config.database_url == "postgresql+psycopg://u:p@h/d"


@pytest.mark.parametrize("content", [None, "", " \n", "x" * 20_000])
def test_an_unusable_secret_file_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    config = load_config(_write(tmp_path, _LEAST + "[telemetry_store]\ntoken_file = 'token'\n"))
    with pytest.raises(ConfigError, match=r"telemetry_store\.token_file"):
        config.store_token()


def test_keys_are_loaded_and_a_threshold_nobody_can_meet_is_refused(tmp_path: Path) -> None:
    release, director = PrivateKey.generate(), PrivateKey.generate()
    release.save(tmp_path / "release.key")
    director.save(tmp_path / "director.key")
    config = load_config(_write(tmp_path))
    assert [key.key_id for key in config.release_keys()] == [release.public.key_id]
    assert config.director_key().public.key_id == director.public.key_id
    twice = _LEAST.replace('["release.pub"]', '["release.pub", "release.pub"]\nrelease_threshold = 2')
    with pytest.raises(ConfigError, match="names 1 different keys"):
        load_config(_write(tmp_path, twice)).release_keys()
    (tmp_path / "release.pub").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"trust\.release_keys"):
        config.release_keys()


def test_the_roles_of_the_config_are_those_there_are() -> None:
    assert [role.name.lower() for role in Role] == list(ROLE_NAMES)


def test_every_setting_is_documented_where_it_is_defined() -> None:
    sections: list[type[_Section]] = [ServerConfig]
    for kind in sections:
        for setting in msgspec.structs.fields(kind):
            if isinstance(setting.type, type) and issubclass(setting.type, _Section):
                sections.append(setting.type)
                assert f"[{setting.name}]" in (kind.__doc__ or "")
            else:
                assert f"`{setting.name}`" in (kind.__doc__ or ""), f"{kind.__name__}.{setting.name}"
    assert len(sections) == 11
