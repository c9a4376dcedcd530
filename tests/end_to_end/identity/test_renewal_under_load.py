"""A device renews its certificate while it works, and no window is lost; an expired one comes back by itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert

from edge_agent.enrolment.identity_file import NewKey, read_identity, write_identity
from fleet_server.database.engine import open_engine
from fleet_server.database.identity_tables import device_certificates
from fleet_server.identity.signing_requests import key_sha256, read_request
from tests.end_to_end.fleet import FLEET, Fleet, eventually
from tests.real_servers.requirements import require_program


def _hold(fleet: Fleet, device: str, *, begins: timedelta, ends: timedelta) -> str:
    """Put a certificate into a device's file that the server gave it earlier; its serial number."""
    new, now = NewKey.generate(), datetime.now(UTC)
    key = read_request(new.request(device))
    issued = fleet.authority.issue_to_device(key, fleet=FLEET, device=device, now=now + begins, life=ends - begins)
    engine = open_engine(f"sqlite:///{fleet.data_dir / 'fleet.db'}")
    with engine.begin() as connection:
        row = {"serial": issued.serial, "key_sha256": key_sha256(key), "pem": issued.pem, "issued_ns": 1}
        values = {**row, "fleet": FLEET, "device": device, "expires_ns": issued.expires_ns}
        connection.execute(insert(device_certificates).values(values))
    engine.dispose()
    path = fleet.folder / f"{device}.trust" / "identity.pem"
    write_identity(path, new, certificate_pem=issued.pem, chain=[])
    return issued.serial


def test_renewing_under_load_loses_no_window_and_a_revoked_device_loses_the_fleet(tmp_path: Path) -> None:
    require_program("mosquitto")
    with Fleet(tmp_path, tls=True) as fleet:
        due, expired = fleet.add_device("due", start=False), fleet.add_device("expired", start=False)
        old = _hold(fleet, "due", begins=timedelta(days=-80), ends=timedelta(days=10))
        _hold(fleet, "expired", begins=timedelta(days=-93), ends=timedelta(days=-3))
        due.start()
        expired.start()

        def renewed() -> bool:
            return read_identity(tmp_path / "due.trust" / "identity.pem").certificate.serial != old

        eventually(renewed, 20, "the certificate that is due was renewed")
        eventually(lambda: len(fleet.windows("due")) > 3, 20, "its windows arrive")
        due.relay.cut()  # what comes next uses the new certificate
        eventually(lambda: len(due.outbox()) > 2, 20, "some windows wait on the device meanwhile")
        due.relay.restore()
        eventually(lambda: fleet.windows("expired"), 30, "the device whose certificate had expired is back")
        assert "expired" not in str(fleet.client.get("devices/expired")["revoked"])
        eventually(lambda: len(fleet.windows("due")) > 10, 20, "windows arrive with the new certificate")
        due.stop()
        answered = due.answered()
        eventually(lambda: sum(w["count"] for w in fleet.windows("due")) >= answered, 20, "every window arrived")
        assert sum(window["count"] for window in fleet.windows("due")) == answered, "none lost, none twice"
        reported = fleet.client.get("devices/due")["reported"]["certificate_expires_ns"]
        assert reported > time.time_ns() + 80 * 86_400 * 10**9

        eventually(lambda: fleet.client.get("devices/expired")["online"], 10, "it is online")
        fleet.client.change("POST", "devices/expired/revoke", {"reason": "stolen"})
        eventually(lambda: not fleet.client.get("devices/expired")["online"], 10, "it was cut off within seconds")
        revoked = eventually(lambda: fleet.client.get("devices/expired")["revoked"], 10, "it is listed as revoked")
        assert (revoked["reason"], revoked["decommissioned"]) == ("stolen", False)
        stored = len(fleet.windows("expired"))
        eventually(lambda: "refused" in expired.log() or "the broker is gone" in expired.log(), 20, "it knows")
        assert expired.is_running, "it goes on answering its application"
        assert len(fleet.windows("expired")) <= stored + 1
