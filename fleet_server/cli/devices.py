"""`fleet enrol` and `fleet devices`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import ago, labels_text, show_facts, show_json, show_line, show_table
from fleet_server.errors import ConfigError

_devices = typer.Typer(help="Look at devices.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("enrol")(enrol)
    app.add_typer(_devices, name="devices")


def enrol(
    device: Annotated[str, typer.Argument(help="The device's id: a-z 0-9 _ -.")],
    *,
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the agent's config here, its secret and keys beside it.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a device, or give it a new secret. Example: fleet enrol pi-7 --label site=lab --out agent.toml"""
    labels = parse_labels(label) if label else None
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already: remove it, or write to another file")
    with open_client(server, api_key_file) as client:
        answer = client.change("POST", f"devices/{device}/enrol", {"labels": labels})
    if out is not None:
        answer["config_file"] = str(write_agent_config(answer, out))
        del answer["secret"]
    if as_json:
        show_json(answer)
    elif out is not None:
        show_line(f"{device} is enrolled. Take {out} and the folder {_trust_folder(out)} to the device, then:")
        show_line(f"  edge-agent run --config {out.name}")
    else:
        show_line(f"{device} is enrolled. Its secret, shown only this once:")
        show_line(answer["secret"])


@_devices.command("list")
def list_devices(
    *,
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, may be repeated.")] = None,
    online: Annotated[bool | None, typer.Option("--online/--offline", help="Only these.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List devices and what they run. Example: fleet devices list --label site=lab --offline"""
    with open_client(server, api_key_file) as client:
        found = client.pages("devices", label=label or None, online=online)
    if as_json:
        show_json(found)
        return
    columns = ("DEVICE", "ONLINE", "LAST SEEN", "RUNS", "LABELS")
    show_table(
        columns,
        [
            (
                device["device"],
                "revoked" if device.get("revoked") else device["online"],
                ago(device["last_seen_ns"]),
                ", ".join(
                    f"{m.get('model')} {m.get('version') or '?'} {m.get('phase')}" for m in _reported_models(device)
                ),
                labels_text(device["labels"]),
            )
            for device in found
        ],
    )


@_devices.command("show")
def show_device(
    device: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one device: desired and reported. Example: fleet devices show pi-7"""
    with open_client(server, api_key_file) as client:
        found = client.get(f"devices/{device}")
    if as_json:
        show_json(found)
        return
    wanted, reported, not_counted = found["desired"] or {}, found["reported"] or {}, found.get("not_counted") or {}
    show_facts(
        (
            ("device", found["device"]),
            ("online", found["online"]),
            ("revoked", revoked_text(found.get("revoked"))),
            ("certificate ends", date_text(found.get("certificate_expires_ns"))),
            ("last seen", ago(found["last_seen_ns"])),
            ("labels", labels_text(found["labels"])),
            ("agent", reported.get("agent_version")),
            ("cpu", reported.get("cpu_signature")),
            ("desired generation", wanted.get("generation")),
            ("reported generation", reported.get("generation")),
            ("clock", clock_text(found.get("clock"))),
            ("newest window", late_text(found.get("clock"))),
            ("does not count", ", ".join(f"{count} {reason}" for reason, count in sorted(not_counted.items()))),
        )
    )
    show_table(
        ("DESIRED MODEL", "ARM", "VERSION", "BUNDLE"),
        [
            (a.get("model"), _arm_text(a), a.get("version"), a.get("bundle", "")[:16])
            for a in wanted.get("assignments", [])
        ],
    )
    show_table(
        ("REPORTED MODEL", "ARM", "VERSION", "VARIANT", "PHASE", "ERROR"),
        [
            (m.get("model"), _arm_text(m), m.get("version"), m.get("variant"), m.get("phase"), m.get("error"))
            for m in _reported_models(found)
        ],
    )


@_devices.command("revoke")
def revoke(
    device: str,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the list and the audit log.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a device in no more, and cut its connection. Example: fleet devices revoke pi-7 --reason stolen"""
    with open_client(server, api_key_file) as client:
        answer = client.change("POST", f"devices/{device}/revoke", {"reason": reason})
    if as_json:
        show_json(answer)
        return
    show_line(f"{device} is revoked: its secret and certificates are refused, its connection is being cut.")
    show_line(f"To let it in again: fleet tokens create --device {device}")


@_devices.command("decommission")
def decommission(
    device: str,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the list and the audit log.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a device that is gone for good; its telemetry stays. Example: fleet devices decommission pi-7"""
    with open_client(server, api_key_file) as client:
        answer = client.change("POST", f"devices/{device}/decommission", {"reason": reason})
    if as_json:
        show_json(answer)
    else:
        show_line(f"{device} is decommissioned: revoked, out of every rollout, nothing desired. Its telemetry stays.")


@_devices.command("quarantine")
def quarantine(
    device: Annotated[str | None, typer.Argument(help="One device; without it the whole fleet.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many windows, the newest first.")] = 20,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show telemetry that was set aside, and why. Example: fleet devices quarantine pi-7"""
    with open_client(server, api_key_file) as client:
        counts = client.pages("quarantine/counts", device=device)
        windows = client.get("quarantine", device=device, limit=limit)["items"]
    if as_json:
        show_json({"counts": counts, "windows": windows})
        return
    if not counts:
        show_line("Nothing was set aside.")
        return
    rows = [(c["device"], c["reason"], c["count"], ago(c["first_ns"]), ago(c["last_ns"]), c["detail"]) for c in counts]
    show_table(("DEVICE", "REASON", "COUNT", "FIRST", "LAST", "THE LAST ONE"), rows)
    kept = [
        (w["device"], ago(w["received_ns"]), f"{w['model']} {w['version']} {w['variant']}", w["sequence"], _whys(w))
        for w in windows
    ]
    if kept:
        show_table(("DEVICE", "RECEIVED", "WINDOW OF", "SEQUENCE", "WHY"), kept)


def _whys(window: dict[str, Any]) -> str:
    return "; ".join(each["detail"] for each in window["reasons"])


def clock_text(clock: dict[str, Any] | None) -> str | None:
    """How far a clock is off, in words; None when that is not known."""
    if clock is None:
        return None
    if not clock["is_off"]:
        return "right"
    return f"{abs(clock['skew_s']):,.0f} s {'ahead' if clock['skew_s'] > 0 else 'behind'}"


def late_text(clock: dict[str, Any] | None) -> str | None:
    """How late the newest window came, in words; None when that is not known."""
    return None if clock is None else f"{clock['late_s']:,.0f} s after its end"


def revoked_text(revoked: dict[str, Any] | None) -> str | None:
    """Since when, by whom and why a device is let in no more, in words; None for one that is."""
    if revoked is None:
        return None
    what = "decommissioned" if revoked["decommissioned"] else "revoked"
    still = "" if revoked["cut_ns"] else ", still to be cut off"
    return f"{what} {ago(revoked['revoked_ns'])} by {revoked['by']}: {revoked['reason'] or 'no reason given'}{still}"


def date_text(at_ns: int | None) -> str | None:
    """A date, None without one."""
    return time.strftime("%Y-%m-%d", time.localtime(at_ns / 1e9)) if at_ns else None


def _arm_text(arm: dict[str, Any]) -> str:
    """An arm with its weight where it is not the usual one, or as the shadow that it is."""
    name, weight = str(arm.get("arm", "main")), arm.get("weight", 1.0)
    if arm.get("shadow"):
        return f"{name} (shadow)"
    return name if weight == 1.0 else f"{name} ({weight:g})"


def _reported_models(device: dict[str, Any]) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = (device["reported"] or {}).get("models", [])
    return models


def parse_labels(given: list[str]) -> dict[str, str]:
    """KEY=VALUE texts as labels. Raises ConfigError."""
    pairs = [text.partition("=") for text in given]
    for text, (_, equals, _) in zip(given, pairs, strict=True):
        if not equals:
            raise ConfigError(f"--label {text!r} is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _trust_folder(out: Path) -> str:
    return f"{out.stem}.trust"


def _write_trust(answer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Whom the device believes: the trust root where the server has one, plain keys otherwise."""
    if answer.get("trust_root"):
        (folder / "root.json").write_text(answer["trust_root"])
        return {"root": f"{folder.name}/root.json"}
    keys = []
    for number, pem in enumerate(answer["release_keys"], start=1):
        (folder / f"release-{number}.pub").write_text(pem)
        keys.append(f"{folder.name}/release-{number}.pub")
    (folder / "director.pub").write_text(answer["director_key"])
    return {
        "release_keys": keys,
        "release_threshold": answer["release_threshold"],
        "director_keys": [f"{folder.name}/director.pub"],
    }


def write_agent_config(answer: dict[str, Any], out: Path) -> Path:
    """The config beside a folder with the secret (mode 0600) and the public keys it names."""
    folder = out.parent / _trust_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trust = _write_trust(answer, folder)
        secret = os.open(folder / "secret", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(secret, "w") as file:
            file.write(answer["secret"] + "\n")
        mqtt = {"url": answer["mqtt_url"], "password_file": f"{folder.name}/secret"}
        if answer.get("mqtt_authority"):
            (folder / "mqtt-ca.pem").write_text(answer["mqtt_authority"])
            mqtt["ca_file"] = f"{folder.name}/mqtt-ca.pem"
        config = {
            "data_dir": "agent-data",
            "device": {"id": answer["device"], "fleet": answer["fleet"]},
            "mqtt": mqtt,
            "server": {"url": answer["server_url"]},
            "trust": trust,
        }
        out.write_text(tomli_w.dumps(config))
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}; enrol again to get a new secret") from None
    return out
