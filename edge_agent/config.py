"""The agent's settings: one TOML file, checked whole before anything starts.

Every setting is a field below with its unit and default. A mistake is one ConfigError line that names the
file, the setting and what is allowed; relative paths are relative to the file's folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from edge_agent.errors import ConfigError
from fleet_protocol.messages import MAIN_ARM, Labels
from fleet_protocol.names import ArmName, DeviceId, FleetId, ModelName, Version

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)]


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file: an unknown setting is an error, not a surprise."""


class DeviceSection(_Section, frozen=True, kw_only=True):
    """[device]: who this device is."""

    id: DeviceId
    fleet: FleetId = "default"
    labels: Labels = field(default_factory=dict)


class ArmSection(_Section, frozen=True, kw_only=True):
    """[models.NAME.arms.ARM]: another file that answers a share of NAME's calls, or only shadows them.

    `weight` is relative to those of the other arms; the model's own file is the arm "main" with weight 1.
    """

    path: Path
    version: Version = "0.0.0"
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    shadow: bool = False


class ModelSection(_Section, frozen=True, kw_only=True):
    """[models.NAME]: a model served from a plain ONNX file, outside any rollout.

    `pinned` keeps it in memory whatever the budget. `weight` is that of the file itself among `arms`.
    """

    path: Path
    version: Version = "0.0.0"
    pinned: bool = False
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    arms: Annotated[dict[ArmName, ArmSection], Meta(max_length=16)] = field(default_factory=dict)
    task: Literal["classification", "regression", "anomaly"] | None = None
    labels: list[str] = field(default_factory=list)


class HttpSection(_Section, frozen=True, kw_only=True):
    """[http]: the local API. With neither `port` nor `socket` it is off.

    `shared_memory` lets callers name regions of it that the agent's user may open, to read inputs and write outputs.
    """

    host: str = "127.0.0.1"
    port: Port | None = None
    socket: Path | None = None
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1024**3)] = 16 * 1024 * 1024
    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 64
    shared_memory: bool = True


class MqttSection(_Section, frozen=True, kw_only=True):
    """[mqtt]: the broker. `url` is mqtt://HOST[:PORT] or mqtts://HOST[:PORT].

    `protocol` "auto" speaks MQTT 5 and falls back to 3.1.1 where the broker has no more. `username`
    defaults to the device id. `max_in_flight` bounds unacknowledged publishes either way. `certificate_file` and
    `key_file` may be the same file; then, as `edge-agent enrol` writes it, `renew_certificate` keeps it good.
    """

    url: str
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    renew_certificate: bool = True
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    keepalive_s: Annotated[int, Meta(ge=1, le=65_535)] = 30
    session_expiry_s: Annotated[int, Meta(ge=0, le=0xFFFFFFFE)] = 7 * 86_400
    max_in_flight: Annotated[int, Meta(ge=1, le=65_535)] = 20
    reconnect_max_s: Positive = 60.0


class ServerSection(_Section, frozen=True, kw_only=True):
    """[server]: where bundles are fetched, as the device id with the secret of its enrolment.

    `password_file` defaults to [mqtt]'s, which holds the same secret unless the broker has passwords of its own.
    `ca_file` is the only CA that is believed for an https url; without it the system's are.
    """

    url: str
    password_file: Path | None = None
    ca_file: Path | None = None


class TrustSection(_Section, frozen=True, kw_only=True):
    """[trust]: whom this device believes. Without it nothing is ever installed from the fleet.

    Either `root`, the trust root that the device pins and from which it follows newer ones, or plain lists of keys.
    """

    root: Path | None = None
    release_keys: Annotated[list[Path], Meta(max_length=64)] = field(default_factory=list)
    release_threshold: Annotated[int, Meta(ge=1, le=64)] = 1
    director_keys: Annotated[list[Path], Meta(max_length=64)] = field(default_factory=list)
    director_threshold: Annotated[int, Meta(ge=1, le=64)] = 1


class TelemetrySection(_Section, frozen=True, kw_only=True):
    """[telemetry]: windows and the outbox.

    `confirmed_by`: whose word ends a record's stay in the outbox. "server": only that of the fleet server, after its
    commit. "broker": the PUBACK, for a broker where devices may not read the server's word, or with other consumers;
    what the broker then loses is lost.
    `confirm_timeout_s`: a window that the broker took but the server has not confirmed is sent again after this.
    `max_cpu_percent`: how much of one core telemetry may use; the sampling of inputs for features keeps to that.
    """

    window_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 60.0
    outbox_max_bytes: Annotated[int, Meta(ge=64 * 1024)] = 64 * 1024 * 1024
    outbox_max_age_s: Positive = 30 * 86_400.0
    confirmed_by: Literal["server", "broker"] = "server"
    confirm_timeout_s: Positive = 180.0
    max_cpu_percent: Annotated[float, Meta(gt=0, le=100)] = 1.0


class UpdateSection(_Section, frozen=True, kw_only=True):
    """[update]: downloads. Attempts are counted since the last byte of progress.

    `max_bytes_per_s` caps what downloads take of the link, none by default. `deltas`: fetch what changed since a file
    that is here, where that is less.
    """

    download_attempts: Annotated[int, Meta(ge=1, le=1000)] = 10
    backoff_max_s: Positive = 60.0
    reserve_disk_bytes: Annotated[int, Meta(ge=0)] = 16 * 1024 * 1024
    max_bytes_per_s: Annotated[int, Meta(ge=1024)] | None = None
    deltas: bool = True


class RuntimeSection(_Section, frozen=True, kw_only=True):
    """[runtime]: how models are loaded and run.

    `threads` for one run; 0 leaves it to the agent. `memory_budget_bytes` bounds the memory of all loaded models
    together. `cache_dir` keeps optimised graphs and measurements, by default in `data_dir`. `providers` in the order
    in which they are tried; "auto" is every known one that this ONNX Runtime has. `tune` lets the agent measure a
    model once on this CPU and keep the fastest settings. `hang_timeout_s`: a model every lane of which is at the same
    run for longer is stuck, and the watchdog of a supervised agent is not fed any more.
    """

    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    memory_budget_bytes: Annotated[int, Meta(ge=1024 * 1024)] | None = None
    cache_dir: Path | None = None
    providers: Annotated[list[str], Meta(min_length=1, max_length=16)] = field(default_factory=lambda: ["auto"])
    tune: bool = True
    hang_timeout_s: Positive = 300.0


class LanesSection(_Section, frozen=True, kw_only=True):
    """[lanes]: how many calls of one model run at once, how many wait, and when that changes.

    `max` 0 is one lane per usable core. A lane is added while calls wait longer than `scale_up_wait_ms` and the CPU is
    below `scale_up_cpu_percent`; one is taken away after `scale_down_after_s` in which less than
    `scale_down_busy_percent` of the lanes' time was used, and at once under memory pressure or heat.
    """

    min: Annotated[int, Meta(ge=1, le=64)] = 1
    max: Annotated[int, Meta(ge=0, le=64)] = 0
    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 256
    max_batch: Annotated[int, Meta(ge=1, le=1024)] = 16
    scale_up_wait_ms: Positive = 2.0
    scale_up_cpu_percent: Annotated[float, Meta(gt=0, le=100)] = 90.0
    scale_down_busy_percent: Annotated[float, Meta(ge=0, le=100)] = 40.0
    scale_down_after_s: Positive = 10.0
    min_free_memory_percent: Annotated[float, Meta(ge=0, le=100)] = 5.0
    max_temperature_c: Annotated[float, Meta(gt=0, le=200)] = 85.0


class AgentConfig(_Section, frozen=True, kw_only=True):
    """The whole file. [mqtt] needs [device] and `data_dir`; [trust] needs [server]."""

    data_dir: Path | None = None
    device: DeviceSection | None = None
    models: dict[ModelName, ModelSection] = field(default_factory=dict)
    http: HttpSection = field(default_factory=HttpSection)
    mqtt: MqttSection | None = None
    server: ServerSection | None = None
    trust: TrustSection | None = None
    telemetry: TelemetrySection = field(default_factory=TelemetrySection)
    update: UpdateSection = field(default_factory=UpdateSection)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    lanes: LanesSection = field(default_factory=LanesSection)


def load_config(path: Path) -> AgentConfig:
    """Read and check a config file. Raises ConfigError, one line, naming the file and the setting."""
    import tomllib

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, and what it lets through of int() and nesting
        raise ConfigError(f"{path}: not TOML: {error}") from None
    try:
        config = msgspec.convert(raw, AgentConfig, dec_hook=lambda kind, value: _path(kind, value, path.parent))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error))}") from None
    try:
        return check_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_config(config: AgentConfig) -> AgentConfig:
    """Return `config` when its parts fit together and every named file is there. Raises ConfigError."""
    if config.mqtt is not None:
        check_mqtt_url(config.mqtt.url)
        if config.device is None:
            raise ConfigError("[mqtt] needs a [device] section with the device's id")
        if (config.mqtt.certificate_file is None) != (config.mqtt.key_file is None):
            raise ConfigError("[mqtt] certificate_file and key_file belong together: set both or neither")
        if config.data_dir is None:
            raise ConfigError("[mqtt] needs data_dir, the folder in which unsent telemetry is kept")
    if config.trust is not None:
        if config.server is None or config.mqtt is None:
            raise ConfigError("[trust] needs [server] url and [mqtt], from which bundles come")
        _check_trust(config.trust)
    if config.server is not None:
        check_server_url(config.server.url)
    _check_models(config)
    return config


def _check_trust(trust: TrustSection) -> None:
    if trust.root is not None:
        if trust.release_keys or trust.director_keys:
            raise ConfigError("trust.root names the keys already: leave out trust.release_keys and trust.director_keys")
        return
    for name, threshold, keys in (
        ("release", trust.release_threshold, trust.release_keys),
        ("director", trust.director_threshold, trust.director_keys),
    ):
        if not keys:
            raise ConfigError(f"trust.{name}_keys lists no key: list at least one, or pin a trust root in trust.root")
        if threshold > len(keys):
            raise ConfigError(f"trust.{name}_threshold is {threshold} but only {len(keys)} {name}_keys are listed")


def _check_models(config: AgentConfig) -> None:
    if config.lanes.max and config.lanes.max < config.lanes.min:
        raise ConfigError(f"lanes.max is {config.lanes.max}, below lanes.min, which is {config.lanes.min}")
    for name, model in config.models.items():
        if MAIN_ARM in model.arms:
            raise ConfigError(f'models.{name}.arms: "{MAIN_ARM}" is the arm of the model\'s own file: use another name')
        if sum(arm.shadow for arm in model.arms.values()) > 1:
            raise ConfigError(f"models.{name}.arms: only one arm may be a shadow")
    for setting, file in _named_files(config):
        if not file.is_file():
            raise ConfigError(f"{setting}: there is no file {file}")


def check_server_url(url: str) -> None:
    """Raise ConfigError unless `url` is http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"server.url {url!r} must be http://HOST[:PORT] or https://HOST[:PORT]")


def check_mqtt_url(url: str) -> tuple[str, int, bool]:
    """(host, port, tls) of mqtt://HOST[:PORT] or mqtts://HOST[:PORT]. Raises ConfigError."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ConfigError(f"mqtt.url {url!r} must be mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
    if parts.username or parts.password:
        raise ConfigError("mqtt.url must not hold a password: use mqtt.username and mqtt.password_file")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), tls


def _named_files(config: AgentConfig) -> list[tuple[str, Path]]:
    files = [(f"models.{name}.path", model.path) for name, model in config.models.items()]
    files += [
        (f"models.{name}.arms.{arm}.path", section.path)
        for name, model in config.models.items()
        for arm, section in model.arms.items()
    ]
    if config.mqtt is not None:
        for setting in ("password_file", "ca_file", "certificate_file", "key_file"):
            value = getattr(config.mqtt, setting)
            if value is not None:
                files.append((f"mqtt.{setting}", value))
    if config.server is not None:
        server_files = (("password_file", config.server.password_file), ("ca_file", config.server.ca_file))
        files += [(f"server.{setting}", file) for setting, file in server_files if file is not None]
    if config.trust is not None:
        files += [("trust.release_keys", key) for key in config.trust.release_keys]
        files += [("trust.director_keys", key) for key in config.trust.director_keys]
        files += [("trust.root", config.trust.root)] if config.trust.root is not None else []
    return files


def _path(kind: type[Any], value: Any, folder: Path) -> Any:
    if kind is not Path:
        raise NotImplementedError
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError("Expected a path as `str`")
    try:
        return folder / Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {value!r}") from None


def _explain(message: str) -> str:
    """msgspec's message with the setting's own name first, and a guess where a name is misspelt."""
    text, _, where = message.partition(" - at `")
    setting = where.removeprefix("key` in `").removeprefix("$").rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.+)`", text)
    if unknown:
        import difflib

        name = unknown.group(1)
        close = difflib.get_close_matches(name, _settings_at(setting), n=1)
        guess = f", did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {'.'.join(filter(None, (setting, name)))!r}{guess}"
    return f"{setting or 'the file'}: {text}"


def _settings_at(setting: str) -> list[str]:
    sections: dict[str, type[Struct]] = {
        "": AgentConfig, "device": DeviceSection, "http": HttpSection, "mqtt": MqttSection, "server": ServerSection,
        "trust": TrustSection, "telemetry": TelemetrySection, "update": UpdateSection, "runtime": RuntimeSection,
        "lanes": LanesSection,
    }  # fmt: skip
    models = ArmSection if ".arms" in setting else ModelSection
    section = models if setting.startswith("models") else sections.get(setting, AgentConfig)
    return [entry.name for entry in msgspec.structs.fields(section)]
