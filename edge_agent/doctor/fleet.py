"""What the doctor sees of the config: its files and keys, its models, its disk, and whether the fleet answers.

Every look at the network ends within TIMEOUT_S; an absent broker or server is a WARN, as inference needs neither.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from edge_agent.config import AgentConfig, MqttSection, ServerSection, check_mqtt_url
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.doctor.machine import is_time_synchronised
from edge_agent.doctor.trust import trust_findings
from edge_agent.errors import AgentError

TIMEOUT_S = 2.0
MAX_CLOCK_DIFFERENCE_S = 60.0
FATAL_CLOCK_DIFFERENCE_S = 86_400.0
FIRST_SANE_YEAR = 2025
"""No clock that was ever set shows an earlier one: this software is younger."""
_MB = 1_000_000


def config_findings(config: AgentConfig) -> Iterator[Finding]:
    """Everything that a config names, looked at one by one."""
    yield disk_finding(config)
    for name, section in config.models.items():
        yield model_finding(f"models.{name}", section.path, config)
        for arm, other in section.arms.items():
            yield model_finding(f"models.{name}.arms.{arm}", other.path, config)
    yield from trust_findings(config)
    yield from (secret_finding(setting, file) for setting, file in _secrets(config))
    if config.mqtt is not None:
        yield broker_finding(config.mqtt)
    server_at: float | None = None
    if config.server is not None:
        found, server_at = server_finding(config.server)
        yield found
    yield clock_finding(now=time.time(), server_at=server_at, is_synchronised=is_time_synchronised())


def disk_finding(config: AgentConfig) -> Finding:
    """Whether data_dir can be written and has room for the outbox and an update."""
    folder = config.data_dir
    if folder is None:
        return ok("disk", "no data_dir: nothing is kept")
    at = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    if not at.is_dir() or not os.access(at, os.W_OK | os.X_OK):
        return fail("disk", f"{folder} cannot be written", f"let the agent's user own {at}, or set another data_dir")
    free = int(psutil.disk_usage(str(at)).free)
    fact = f"{free // _MB} MB are free for {folder}"
    if free < config.update.reserve_disk_bytes:
        return fail("disk", fact, "make room: no update fits, as update.reserve_disk_bytes must stay free")
    if free < config.update.reserve_disk_bytes + config.telemetry.outbox_max_bytes:
        return warn("disk", fact, "make room, or lower telemetry.outbox_max_bytes: a long offline time fills the disk")
    return ok("disk", fact)


def model_finding(setting: str, path: Path, config: AgentConfig) -> Finding:
    """Whether the model of a setting loads, and how."""
    from edge_agent.runtime.loading import load_model

    try:
        loaded = load_model(path, runtime=config.runtime, cache_dir=None)
    except AgentError as error:
        return fail("model", f"{setting}: {error}", "export the model again, or name another file")
    how = f"{loaded.settings.providers[0]}, {loaded.settings.threads} thread(s)"
    fact = f"{setting}: loads and warms in {loaded.load_s * 1000:.0f} ms on {how}"
    if loaded.fallbacks:
        reasons = "; ".join(f"{fallback.provider}: {fallback.reason}" for fallback in loaded.fallbacks)
        return warn("model", f"{fact}; not on {reasons}", "repair that provider, or take it out of runtime.providers")
    return ok("model", fact)


def secret_finding(setting: str, file: Path) -> Finding:
    """Whether a secret is readable by the agent, and by nobody else."""
    try:
        mode = file.stat().st_mode
        file.open("rb").close()
    except OSError as error:
        return fail("secret", f"{setting} {file}: {error.strerror}", "let the agent's user read it")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return warn("secret", f"{setting} {file} can be read by other users", f"chmod 600 {file}")
    return ok("secret", f"{setting} is readable by the agent alone")


def broker_finding(section: MqttSection) -> Finding:
    """Whether the broker takes a connection, and speaks TLS where it should."""
    import socket
    import ssl

    host, port, tls = check_mqtt_url(section.url)
    advice = "check mqtt.url, the broker and the firewall; windows are kept until it answers"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
            if tls:
                context = ssl.create_default_context(cafile=str(section.ca_file) if section.ca_file else None)
                if section.certificate_file and section.key_file:
                    context.load_cert_chain(section.certificate_file, section.key_file)
                context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLError as error:
        return fail(
            "broker", f"{section.url}: no TLS: {error.reason or error}", "check mqtt.ca_file and certificate_file"
        )
    except (OSError, UnicodeError) as error:
        return warn("broker", f"{section.url} does not answer: {_text(error)}", advice)
    return ok("broker", f"{section.url} takes connections")


def server_finding(section: ServerSection) -> tuple[Finding, float | None]:
    """Whether the fleet server answers, and its clock in seconds since 1970 where it tells."""
    import ssl

    parts = urlsplit(section.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/health")
        response = connection.getresponse()
        response.read(1024)
    except ssl.SSLError as error:
        return fail("server", f"{section.url}: no TLS: {error.reason or error}", "check the server's certificate"), None
    except (OSError, HTTPException, UnicodeError) as error:
        advice = "check server.url, the server and the firewall; updates wait until it answers"
        return warn("server", f"{section.url} does not answer: {_text(error)}", advice), None
    finally:
        connection.close()
    server_at = _date(response.headers.get("Date"))
    if response.status >= 400:
        advice = "check server.url, and the server's log"
        return warn("server", f"{section.url}/health answers {response.status}", advice), server_at
    return ok("server", f"{section.url} answers"), server_at


def clock_finding(*, now: float, server_at: float | None, is_synchronised: bool | None) -> Finding:
    """Whether this device's clock can be believed. Times in seconds since 1970."""
    advice = "let systemd-timesyncd or chrony set the clock: certificates, deadlines and windows need it"
    if server_at is not None:
        difference = abs(now - server_at)
        fact = f"{difference:.0f} s from the server's"
        if difference > FATAL_CLOCK_DIFFERENCE_S:
            return fail("clock", fact, advice)
        return warn("clock", fact, advice) if difference > MAX_CLOCK_DIFFERENCE_S else ok("clock", fact)
    year = time.gmtime(now).tm_year
    if year < FIRST_SANE_YEAR:
        return fail("clock", f"it shows the year {year}", advice)
    return ok("clock", "set by the network" if is_synchronised else f"it shows the year {year}")


def _secrets(config: AgentConfig) -> Iterator[tuple[str, Path]]:
    if config.mqtt is not None:
        for setting in ("password_file", "key_file"):
            file = getattr(config.mqtt, setting)
            if file is not None:
                yield f"mqtt.{setting}", file
    if config.server is not None and config.server.password_file is not None:
        yield "server.password_file", config.server.password_file


def _date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
