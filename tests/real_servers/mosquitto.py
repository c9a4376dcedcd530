"""A real Mosquitto with its own configuration, folder and port.

Invariant: the port and the folder stay the same over stop, kill and restart, so clients may come back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.message_bus.broker_files import mosquitto_config, write_broker_files
from tests.real_servers.processes import Process, accepts, free_port
from tests.real_servers.requirements import require_program

_START_TIMEOUT_S = 15.0


class Mosquitto:
    """A broker for one test; `with Mosquitto(folder) as broker` starts and stops it.

    `users` maps names to passwords and closes the broker to everyone else; `acl` is the text of an ACL file;
    `persistence` keeps sessions, queues and retained messages over restarts (written on a clean stop and every
    `autosave_s`); `settings` are further lines of mosquitto.conf.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        persistence: bool = True,
        autosave_s: int = 1,
        max_queued_messages: int = 100_000,
        max_inflight_messages: int = 1_000,
        settings: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self._program = require_program("mosquitto")
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.process: Process | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} {self.host}",
            f"persistence {str(persistence).lower()}",
            f"persistence_location {folder}/",
            f"autosave_interval {autosave_s}",
            f"max_queued_messages {max_queued_messages}",
            f"max_inflight_messages {max_inflight_messages}",
            "set_tcp_nodelay true",
            "log_dest stderr",
            f"allow_anonymous {str(users is None).lower()}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # it would otherwise give up the rights to its own folder
        if users is not None:
            lines.append(f"password_file {self._write_passwords(users)}")
        if acl is not None:
            (folder / "acl").write_text(acl)
            (folder / "acl").chmod(0o600)
            lines.append(f"acl_file {folder / 'acl'}")
        (folder / "mosquitto.conf").write_text("\n".join([*lines, *settings, ""]))

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The broker's address as mqtt://host:port."""
        return f"mqtt://{self.host}:{self.port}"

    def start(self) -> None:
        """Start and wait until the broker accepts connections."""
        if self.process is not None:
            raise RuntimeError("this Mosquitto runs already")
        process = Process([self._program, "-c", self.folder / "mosquitto.conf"], folder=self.folder, name="mosquitto")
        self.process = process
        try:
            process.wait_ready(lambda: accepts(self.port), _START_TIMEOUT_S, f"Mosquitto accepts on port {self.port}")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End cleanly; with persistence the broker writes its state first. Idempotent."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def kill(self) -> None:
        """Kill -9: what was not autosaved is lost. Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def restart(self) -> None:
        """Stop cleanly when it runs, and start on the same port and folder."""
        self.stop()
        self.start()

    def log(self) -> str:
        """What the broker logged since its first start."""
        return (self.folder / "mosquitto.err").read_text(errors="replace")

    def _write_passwords(self, users: Mapping[str, str]) -> Path:
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        path.chmod(0o600)
        subprocess.run([require_program("mosquitto_passwd"), "-U", str(path)], check=True, capture_output=True)
        return path


def certify_mosquitto(mosquitto: Mosquitto, authority: CertificateAuthority, *, fleet: str) -> None:
    """Set a Mosquitto up by certificates, with the files that the product writes. Before its start."""
    folder = mosquitto.folder
    text = mosquitto_config(port=mosquitto.port, at=str(folder), data=str(folder / "data"), address=mosquitto.host)
    text = text.replace("autosave_interval 30", "autosave_interval 1") + "set_tcp_nodelay true\nlog_dest stderr\n"
    if os.geteuid() == 0:
        text += "user root\n"  # it would otherwise give up the rights to its own folder
    write_broker_files(folder, authority=authority, fleet=fleet, hosts=[mosquitto.host, "localhost"], config=text)
    (folder / "data").mkdir(exist_ok=True)
