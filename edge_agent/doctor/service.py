"""What the doctor sees of the service: the systemd unit, its watchdog, and what it keeps the agent from doing.

Read from the unit's files with their drop-ins, so that it can be said of a service that does not run. Needs no systemd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_agent.doctor.findings import Finding, ok, warn

UNIT = "edge-agent.service"
UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/run/systemd/system"), Path("/usr/lib/systemd/system"))
_MAX_FILE_BYTES = 64 * 1024
_SOURCE = "compose/systemd/edge-agent.service"
_MORE = f"{_SOURCE} of the sources has them all"
_YES = frozenset({"yes", "true", "on", "1"})
_HARDENING = {
    "NoNewPrivileges": _YES,
    "ProtectSystem": frozenset({"strict"}),
    "ProtectHome": _YES | {"read-only", "tmpfs"},
    "PrivateTmp": _YES | {"disconnected"},
    "ProtectKernelTunables": _YES,
    "ProtectKernelModules": _YES,
    "ProtectControlGroups": _YES | {"strict", "private"},
    "RestrictNamespaces": _YES,
    "RestrictSUIDSGID": _YES,
    "LockPersonality": _YES,
}
_MUST_BE_SET = ("CapabilityBoundingSet", "RestrictAddressFamilies", "SystemCallFilter", "MemoryMax", "StateDirectory")

Settings = dict[str, str]


def service_findings(
    *, has_systemd: bool, in_service: bool, watchdog_usec: str = "", folders: Sequence[Path] = UNIT_FOLDERS
) -> Iterator[Finding]:
    """How the agent is kept running. `watchdog_usec` is WATCHDOG_USEC of this process's environment."""
    settings = unit_settings(folders)
    if settings is None:
        yield _without_unit(has_systemd=has_systemd, in_service=in_service)
        return
    yield restart_finding(settings)
    yield watchdog_finding(settings, watchdog_usec=watchdog_usec if in_service else "")
    yield hardening_finding(settings)


def _without_unit(*, has_systemd: bool, in_service: bool) -> Finding:
    if in_service:
        return ok("service", f"started by systemd, by another unit than {UNIT}")
    if has_systemd:
        return warn(
            "service",
            f"systemd is here, and there is no {UNIT}: nothing starts the agent again when it ends",
            f"copy {_SOURCE} to /etc/systemd/system; it has Restart=always, WatchdogSec and MemoryMax",
        )
    return ok("service", "no systemd: let whatever starts the agent start it again when it ends")


def restart_finding(settings: Settings) -> Finding:
    """Whether a process that dies comes back, which the crash guard counts on."""
    restart, kind = settings.get("Restart", "no"), settings.get("Type", "simple")
    if restart != "always":
        return warn("service", f"{UNIT} has Restart={restart}", "set Restart=always: the next start takes a model back")
    if kind not in ("notify", "notify-reload"):
        return warn(
            "service", f"{UNIT} has Type={kind}", "set Type=notify: the agent says when it serves, and if alive"
        )
    return ok("service", f"{UNIT} starts it again whenever it ends, and waits until it serves")


def watchdog_finding(settings: Settings, *, watchdog_usec: str) -> Finding:
    """Whether a process that hangs is ended."""
    patience = settings.get("WatchdogSec", "")
    if patience in ("", "0", "infinity"):
        return warn("watchdog", f"{UNIT} has no WatchdogSec", "set WatchdogSec=60: a process that hangs is ended then")
    running = f", {int(watchdog_usec) / 1e6:g} s in this process" if watchdog_usec.isdecimal() else ""
    return ok("watchdog", f"{UNIT} ends a process that gives no sign of life for WatchdogSec={patience}{running}")


def hardening_finding(settings: Settings) -> Finding:
    """Whether the unit keeps the agent from what it never does."""
    missing = [name for name, allowed in _HARDENING.items() if settings.get(name, "").lower() not in allowed]
    missing += [name for name in _MUST_BE_SET if name not in settings]
    if settings.get("User", "root") == "root" and settings.get("DynamicUser", "").lower() not in _YES:
        missing.append("User or DynamicUser")
    if missing:
        return warn("hardening", f"{UNIT} leaves open: {', '.join(missing)}", f"set them; {_MORE}")
    return ok("hardening", f"{UNIT} has every setting that is looked for")


def unit_settings(folders: Sequence[Path]) -> Settings | None:
    """What [Service] of the unit and its drop-ins set, the last word of each; None without the unit.

    The first folder that has the unit counts; drop-ins count of all, by name, an earlier folder's before a later's.
    """
    unit = next((folder / UNIT for folder in folders if (folder / UNIT).is_file()), None)
    if unit is None:
        return None
    drop_ins: dict[str, Path] = {}
    for folder in reversed(folders):
        drop_ins |= {path.name: path for path in (folder / f"{UNIT}.d").glob("*.conf")}
    settings: Settings = {}
    for path in (unit, *(drop_ins[name] for name in sorted(drop_ins))):
        _read_into(settings, path)
    return settings


def _read_into(settings: Settings, path: Path) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_FILE_BYTES)
    except OSError:
        return
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and "=" in stripped and not stripped.startswith(("#", ";")):
            name, _, value = stripped.partition("=")
            settings[name.strip()] = value.strip()
