"""`edge-agent enrol`: from a token to a device that can join its fleet.

Order, so that it may be cut short anywhere and run again: the key is made and kept, the server asked (asked again, it
gives the same key a certificate without using the token once more), every file written, agent.toml last.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_agent.config import check_server_url, load_config
from edge_agent.enrolment.asking import ask
from edge_agent.enrolment.config_files import PENDING, trust_folder, write_agent_files
from edge_agent.enrolment.identity_file import NewKey, read_new_key, write_private
from edge_agent.errors import ConfigError, ServerAwayError
from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name

MAX_TRIES = 5
_PAUSE_S = 1.0
_MAX_FILE_BYTES = 64 * 1024


def run(options: argparse.Namespace) -> int:
    """Enrol; returns the exit status. Raises ConfigError, EnrolmentRefusedError, ServerAwayError."""
    out: Path = options.out
    _check(options)
    if out.exists() and not options.replace:
        return _is_enrolled(out, options.device)
    token = options.token or _read(options.token_file)
    authority = _read(options.ca_file) + "\n" if options.ca_file else ""
    body: dict[str, Any] = {"device": options.device, "labels": _labels(options.label)}
    try:
        folder = trust_folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        new = read_new_key(folder / PENDING)
        if new is None:
            new = NewKey.generate()
            write_private(folder / PENDING, new.pem)
        body["csr"] = new.request(options.device)
        answer = _ask_patiently(options.server, body, token, options.ca_file)
        expires_ns = write_agent_files(out, answer, new, data_dir=options.data_dir, server_authority=authority)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename}: {error.strerror}; run it again when that is put right"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the answer of {options.server} cannot be used: {error}") from None
    until = time.strftime(", with a certificate until %Y-%m-%d", time.gmtime(expires_ns / 1e9)) if expires_ns else ""
    _say(f"{options.device} is enrolled in the fleet {answer['fleet']}{until}. Start it with:")
    _say(f"  edge-agent run --config {out}")
    return 0


def _ask_patiently(url: str, body: dict[str, Any], token: str, ca_file: Path | None) -> dict[str, Any]:
    for tries in range(1, MAX_TRIES + 1):
        try:
            return ask(url, "/api/v1/enrol", body, authorization=f"Bearer {token}", ca_file=ca_file)
        except ServerAwayError:
            if tries == MAX_TRIES:
                raise
            time.sleep(random.uniform(0, _PAUSE_S * 2**tries))
    raise AssertionError("the last try returns or raises")


def _check(options: argparse.Namespace) -> None:
    try:
        check_name("device", options.device)
    except InvalidName as error:
        raise ConfigError(f"--device: {error}") from None
    check_server_url(options.server)
    parts = urlsplit(options.server)
    if parts.scheme == "http" and not options.insecure and not _is_this_machine(parts.hostname or ""):
        raise ConfigError(
            f"--server {options.server} is not encrypted: the token and the device's secret could be read on the way; "
            "use https://, or --insecure where the network is trusted"
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_enrolled(out: Path, device: str) -> int:
    config = load_config(out)
    if config.device is None or config.device.id != device:
        raise ConfigError(f"{out} is there and not of the device {device!r}: write to another --out, or use --replace")
    _say(f"{device} is enrolled already, nothing was done. Start it with:")
    _say(f"  edge-agent run --config {out}")
    return 0


def _labels(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for text, (_, equals, _) in zip(given, pairs, strict=True):
        if not equals:
            raise ConfigError(f"--label {text!r} is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _read(path: Path) -> str:
    try:
        if str(path) == "-":
            text = sys.stdin.read(_MAX_FILE_BYTES)
        else:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty")
    return text.strip()


def _say(text: str) -> None:
    print(text)  # noqa: T201 - the command's own output
