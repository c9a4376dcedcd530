"""What the doctor sees of the fleet's models here: certificate, what runs, the way back, quarantine, the outbox.

It reads what the agent keeps and changes nothing, also while the agent runs.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from edge_agent.config import AgentConfig
from edge_agent.control.state import STATE_FILE, ControlState, ModelState
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.enrolment.der import read_certificate
from fleet_protocol.errors import ProtocolError
from fleet_protocol.manifest import read_unverified_manifest

SOON_S = 14 * 86_400.0
"""What expires within this is told: two weeks are time to act."""
MAX_QUIET_OUTBOX = 10_000
_MAX_FILE_BYTES = 1024 * 1024
_TELL = 3


def update_findings(config: AgentConfig, *, now_s: float | None = None) -> Iterator[Finding]:
    """Everything about the fleet's part of this device. `now_s` is the time, since 1970."""
    now = time.time() if now_s is None else now_s
    if config.mqtt is not None and config.mqtt.certificate_file is not None:
        yield certificate_finding(config.mqtt.certificate_file, now_s=now)
    if config.data_dir is not None:
        if config.trust is not None:
            yield from state_findings(config.data_dir)
        if config.mqtt is not None:
            yield outbox_finding(config.data_dir / "outbox.db")


def certificate_finding(file: Path, *, now_s: float) -> Finding:
    """Until when the broker lets this device in."""
    try:
        expires_s = read_certificate(_text(file)).expires_ns / 1e9
    except (OSError, ValueError) as error:
        return fail("certificate", f"{file}: {error}", "enrol this device again: edge-agent enrol")
    left = expires_s - now_s
    if left <= 0:
        return fail("certificate", f"it expired {-left / 86_400:.0f} days ago", "enrol this device again with a token")
    fact = f"good for {left / 86_400:.0f} days"
    if left < SOON_S:
        return warn("certificate", fact, "see that the agent reaches the server, which renews it")
    return ok("certificate", fact)


def state_findings(data_dir: Path) -> Iterator[Finding]:
    """What the fleet's models do here, whether each has a way back, and what is in quarantine."""
    path = data_dir / "control" / STATE_FILE
    try:
        state = msgspec.json.decode(_bytes(path), type=ControlState)
    except FileNotFoundError:
        yield ok("updates", "the fleet has not assigned anything yet")
        return
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        yield fail("updates", f"{path}: {error}", "start the agent: it keeps the file aside and asks the fleet anew")
        return
    for slot, model in sorted(state.models.items()):
        yield model_finding(slot, model, data_dir / "bundles")
    yield quarantine_finding(state)


def model_finding(slot: str, model: ModelState, bundles: Path) -> Finding:
    """One slot: what runs, and whether what it would go back to is whole on the disk."""
    running, back = model.active, model.last_good
    fact = f"{slot}: {f'{running.version} ({running.variant})' if running else 'nothing'} runs, {model.phase.value}"
    for installed in (running, back):
        missing = None if installed is None else missing_file(bundles, installed.bundle, installed.variant)
        if installed is not None and missing is not None:
            what = "what runs" if installed is running else "the way back"
            advice = "roll the version out again, it is fetched anew; look at the disk's health"
            return fail("updates", f"{fact}; {what}, {installed.version}, lacks the file {missing[:16]}", advice)
    if running is not None and back is None:
        return ok("updates", f"{fact}; it is the first, there is no earlier one to go back to")
    if running is None and model.target is not None:
        advice = "roll out a version that runs here; edge-agent's log and the device's page say why this did not"
        return warn("updates", f"{fact}{': ' if model.error else ''}{model.error}", advice)
    return ok("updates", f"{fact}; {back.version if back else 'nothing'} is the way back" if running else fact)


def quarantine_finding(state: ControlState) -> Finding:
    """What failed here and is not tried again."""
    if not state.quarantine:
        return ok("quarantine", "empty")
    told = "; ".join(f"{key[:12]}: {why}" for key, why in list(state.quarantine.items())[:_TELL])
    more = f" and {len(state.quarantine) - _TELL} more" if len(state.quarantine) > _TELL else ""
    advice = "publish a repaired version, or assign it with retry when the cause was this device's"
    return warn("quarantine", f"{len(state.quarantine)} bundles failed here: {told}{more}", advice)


def outbox_finding(path: Path) -> Finding:
    """What waits for the server, and whether anything had to be dropped."""
    if not path.exists():
        return ok("outbox", "empty")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as db:
            waiting, oldest = db.execute("SELECT count(*), min(created_s) FROM records").fetchone()
            dropped = db.execute("SELECT value FROM meta WHERE key = 'dropped'").fetchone()
    except sqlite3.Error as error:
        return warn("outbox", f"{path}: {error}", "start the agent: it keeps what cannot be read aside")
    fact = f"{waiting} records wait for the server"
    if dropped and int(dropped[0]):
        return warn("outbox", f"{fact}, {dropped[0]} were dropped so far", "raise telemetry.outbox_max_bytes")
    if waiting > MAX_QUIET_OUTBOX:
        days = (time.time() - oldest) / 86_400
        return warn("outbox", f"{fact}, the oldest for {days:.1f} days", "look at the broker and the server")
    return ok("outbox", fact)


def missing_file(bundles: Path, bundle: str, variant: str) -> str | None:
    """The digest of a file that a bundle's variant needs and that is not here whole; None when all are."""
    try:
        manifest = read_unverified_manifest((bundles / bundle).read_bytes())
    except (OSError, ProtocolError):
        return bundle
    for artifact in (one.file for one in manifest.variants if one.name == variant):
        path = bundles / artifact.sha256
        if not path.is_file() or path.stat().st_size != artifact.size_bytes:
            return artifact.sha256
    return None


def _text(file: Path) -> str:
    return _bytes(file).decode("ascii", "replace")


def _bytes(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MAX_FILE_BYTES)
