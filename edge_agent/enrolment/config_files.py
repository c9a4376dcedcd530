"""Writes what a device needs to join its fleet: agent.toml and, beside it, a folder with keys and certificates.

Invariant: agent.toml is written last, so that where it is, everything it names is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.durable_files import replace_file
from edge_agent.enrolment.identity_file import NewKey, write_identity, write_private

IDENTITY, SECRET, PENDING = "identity.pem", "secret", "pending-key.pem"
MAX_KEYS = 64


def trust_folder(out: Path) -> Path:
    """The folder beside the config `out`."""
    return out.parent / f"{out.stem}.trust"


def write_agent_files(
    out: Path, answer: Mapping[str, Any], new: NewKey, *, data_dir: str, server_authority: str = ""
) -> int:
    """Write everything of the server's answer; returns when the certificate ends (UTC ns), 0 without one.

    Raises ValueError for an answer that lacks something, OSError.
    """
    folder = trust_folder(out)
    near = folder.name
    trust: dict[str, Any] = {}
    files: dict[str, str] = {}
    root = answer.get("trust_root")
    if root:
        files["root.json"] = _text(root)
        trust["root"] = f"{near}/root.json"
    else:
        names = [f"release-{number}.pub" for number in range(1, len(answer["release_keys"][:MAX_KEYS]) + 1)]
        files |= {name: _text(pem) for name, pem in zip(names, answer["release_keys"], strict=False)}
        files["director.pub"] = _text(answer["director_key"])
        trust["release_keys"] = [f"{near}/{name}" for name in names]
        trust["release_threshold"] = int(answer["release_threshold"])
        trust["director_keys"] = [f"{near}/director.pub"]
    mqtt: dict[str, Any] = {"url": _text(answer["mqtt_url"])}
    server: dict[str, Any] = {"url": _text(answer["server_url"]), "password_file": f"{near}/{SECRET}"}
    if server_authority:
        files["server-ca.pem"] = server_authority
        server["ca_file"] = f"{near}/server-ca.pem"
    if answer.get("mqtt_authority"):
        files["mqtt-ca.pem"] = _text(answer["mqtt_authority"])
        mqtt["ca_file"] = f"{near}/mqtt-ca.pem"
    certificate, expires_ns = answer.get("certificate"), 0
    for name, text in files.items():
        replace_file(folder / name, text.encode())
    write_private(folder / SECRET, _text(answer["secret"]) + "\n")
    if certificate and certificate.get("signs_in"):
        chain = [_text(pem) for pem in certificate["chain"][:8]]
        identity = write_identity(folder / IDENTITY, new, certificate_pem=_text(certificate["pem"]), chain=chain)
        expires_ns = identity.certificate.expires_ns
        mqtt |= {"certificate_file": f"{near}/{IDENTITY}", "key_file": f"{near}/{IDENTITY}"}
    else:
        mqtt["password_file"] = f"{near}/{SECRET}"
    sections: dict[str, Mapping[str, Any]] = {
        "device": {"id": _text(answer["device"]), "fleet": _text(answer["fleet"])},
        "mqtt": mqtt,
        "server": server,
        "trust": trust,
    }
    replace_file(out, _toml({"data_dir": data_dir}, sections).encode())
    (folder / PENDING).unlink(missing_ok=True)
    return expires_ns


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the server's answer lacks a part: is it an edgefleet server of this release?")
    return value


def _toml(top: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{name} = {_value(value)}" for name, value in top.items()]
    for section, values in sections.items():
        lines += ["", f"[{section}]", *(f"{name} = {_value(value)}" for name, value in values.items())]
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    """A TOML value: strings, numbers and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
