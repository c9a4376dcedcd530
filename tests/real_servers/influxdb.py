"""A real InfluxDB with its own folders and ports, answering /api/v2/write, /query and /ping on one URL.

Debian's influxd 1.6 has no /api/v2/write; a real nginx in front of it rewrites that path to its /write and
passes everything else. Where EDGEFLEET_TEST_INFLUX_URL names a server (1.8, 2.x or 3.x), that one is used
instead, with EDGEFLEET_TEST_INFLUX_TOKEN and _ORG; it cannot be stopped, and `new_bucket` leaves its buckets there.
"""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path

import urllib3

from tests.real_servers.processes import Process, free_port
from tests.real_servers.requirements import missing, require_program

_START_TIMEOUT_S = 30.0
_URL = "EDGEFLEET_TEST_INFLUX_URL"

_INFLUXD_CONF = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{engine_port}"
  log-enabled = false
[continuous_queries]
  enabled = false
"""

_NGINX_CONF = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  client_max_body_size 64m;
  proxy_http_version 1.1;
  proxy_buffering off;
  proxy_read_timeout 60s;
  server {{
    listen 127.0.0.1:{port};
    location = /api/v2/write {{
      rewrite ^ /write?db=$arg_bucket&precision=$arg_precision? break;
      proxy_pass http://127.0.0.1:{engine_port};
    }}
    location / {{ proxy_pass http://127.0.0.1:{engine_port}; }}
  }}
}}
"""


class InfluxDB:
    """A server for tests; `with InfluxDB(folder) as server` starts and stops it.

    `url`, `token`, `org` are what a client needs; `new_bucket()` is a name that no other test uses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.external = _URL in os.environ
        self.token = os.environ.get("EDGEFLEET_TEST_INFLUX_TOKEN", "") if self.external else ""
        self.org = os.environ.get("EDGEFLEET_TEST_INFLUX_ORG", "") if self.external else ""
        self.bucket = os.environ.get("EDGEFLEET_TEST_INFLUX_BUCKET", "telemetry") if self.external else "telemetry"
        self._numbers = itertools.count(1)
        self._run = secrets.token_hex(4)
        self.engine: Process | None = None
        self._front: Process | None = None
        if self.external:
            self.url = os.environ[_URL].rstrip("/")
            return
        self._influxd, self._nginx = require_program("influxd"), require_program("nginx")
        self.port, self._engine_port, rpc_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        ports = {"folder": folder, "port": self.port, "engine_port": self._engine_port, "rpc_port": rpc_port}
        (folder / "influxd.conf").write_text(_INFLUXD_CONF.format(**ports))
        (folder / "nginx.conf").write_text(_NGINX_CONF.format(**ports))

    def __enter__(self) -> InfluxDB:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def new_bucket(self) -> str:
        """The name of a bucket that nobody has used; it is not created yet."""
        return f"{self.bucket}_{self._run}_{next(self._numbers)}"

    def start(self) -> None:
        """Start and wait until the server answers through its front."""
        if self.external:
            return
        if self.engine is not None:
            raise RuntimeError("this InfluxDB runs already")
        self.engine = Process(
            [self._influxd, "-config", self.folder / "influxd.conf"], folder=self.folder, name="influxd"
        )
        if self._front is None:
            self._front = Process(
                [self._nginx, "-c", self.folder / "nginx.conf", "-p", self.folder], folder=self.folder, name="nginx"
            )
        try:
            self.engine.wait_ready(lambda: self._answers(self._engine_port), _START_TIMEOUT_S, "InfluxDB answers /ping")
            self._front.wait_ready(lambda: self._answers(self.port), _START_TIMEOUT_S, "nginx passes /ping")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End server and front cleanly: connections are refused. Idempotent."""
        for process in (self._front, self.engine):
            if process is not None:
                process.stop()
        self._front = self.engine = None

    def kill(self) -> None:
        """Kill -9 the server; its front stays and answers 502. Idempotent."""
        self._own("killed")
        if self.engine is not None:
            self.engine.kill()
            self.engine = None

    def pause(self) -> None:
        """Stop the server from answering while it keeps its connections (SIGSTOP)."""
        self._own("paused")
        if self.engine is not None:
            self.engine.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        if self.engine is not None:
            self.engine.resume()

    def restart(self) -> None:
        """Stop cleanly when it runs, and start on the same ports and folders."""
        self._own("restarted")
        self.stop()
        self.start()

    def _own(self, what: str) -> None:
        if self.external:
            missing("an InfluxDB of this test's own", f"the server in {_URL} cannot be {what} by a test")

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            return urllib3.request("GET", f"http://127.0.0.1:{port}/ping", timeout=1.0, retries=False).status == 204
        except urllib3.exceptions.HTTPError:
            return False
