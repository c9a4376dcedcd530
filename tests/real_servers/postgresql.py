"""A real PostgreSQL with its own folder and port, and a database of its own for every test that asks.

Invariants: nobody but this machine's processes reaches it; its folder is gone when it has stopped. PostgreSQL refuses
to run as root, so root runs it as the package's user `postgres`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.real_servers.processes import Process, free_port
from tests.real_servers.requirements import find_program, missing

_START_TIMEOUT_S = 30.0
_SUPERUSER = "postgres"
_SETTINGS = ("fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")


class PostgreSQL:
    """`with PostgreSQL() as server: url = server.make_database()`. Skips the test where there is none."""

    def __init__(self) -> None:
        self._programs = _find_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="edgefleet-postgresql-"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self._folder, _SUPERUSER)
            self._as_user = ["setpriv", "--reuid", _SUPERUSER, "--regid", _SUPERUSER, "--clear-groups"]
        self.port = free_port()
        self._databases = 0
        self._process: Process | None = None

    def __enter__(self) -> PostgreSQL:
        try:
            self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", _SUPERUSER)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start and wait until it answers queries."""
        settings = [part for setting in (*_SETTINGS, f"port={self.port}") for part in ("-c", setting)]
        command = [*self._as_user, self._programs / "postgres", "-D", self._data, *settings]
        self._process = Process(command, folder=self._folder, name="postgres")
        self._process.wait_ready(self._answers, _START_TIMEOUT_S, "PostgreSQL answers")

    def kill(self) -> None:
        """Kill -9: the next start recovers from its log. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def make_database(self) -> str:
        """A new, empty database; its URL for the server's config."""
        self._databases += 1
        name = f"fleet_{self._databases}"
        self._query("postgres", f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{_SUPERUSER}@127.0.0.1:{self.port}/{name}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _answers(self) -> bool:
        return self._psql("postgres", "SELECT 1").returncode == 0

    def _query(self, database: str, statement: str) -> None:
        self._psql(database, statement).check_returncode()

    def _psql(self, database: str, statement: str) -> subprocess.CompletedProcess[bytes]:
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", _SUPERUSER, "-d", database]
        return subprocess.run(
            [self._programs / "psql", *address, "-q", "-c", statement], check=False, capture_output=True
        )

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, self._programs / program, "-D", self._data, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder)


def _find_programs() -> Path:
    """The folder of the newest server: Debian keeps it out of the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    on_path = find_program("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    if not folders:
        missing("PostgreSQL", "no server found: install the package postgresql")
    return folders[-1]
