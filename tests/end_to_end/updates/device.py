"""One device: an agent process with a folder of its own, which can be killed, restarted and asked."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import tomli_w

from edge_agent.control.state import ControlState
from tests.end_to_end.updates.bundles import MODEL, Bundle, Keys, clear_digit
from tests.end_to_end.updates.director import DEVICE, FLEET, WAIT_S
from tests.real_servers.processes import Process, free_port, wait_until

PLAN_VARIABLE = "DANGEROUS_AGENT_PLAN"
_DANGEROUS_AGENT = Path(__file__).with_name("dangerous_agent.py")
_ROOT = Path(__file__).resolve().parents[3]
_ANSWER_TIMEOUT_S = 10.0
_CALL_PAUSE_S = 0.002
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the local API answered, or status 0 when nobody did."""

    status: int
    body: dict[str, Any]


class Device:
    """`with Device(...)` ends the process that runs; `start` and `kill` may be called any number of times."""

    def __init__(
        self,
        folder: Path,
        *,
        keys: Keys,
        broker_port: int,
        server_url: str,
        snapshot: Path | None = None,
        download_attempts: int = 3,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.data = folder, folder / "data"
        self.port = free_port()
        self.process: Process | None = None
        if snapshot is not None:
            shutil.copytree(snapshot, self.data)
        names = {"release-0": keys.release[0], "release-1": keys.release[1], "director": keys.director}
        for name, key in names.items():
            (folder / f"{name}.pem").write_bytes(key.public.pem())
        config = {
            "data_dir": str(self.data),
            "device": {"id": DEVICE, "fleet": FLEET},
            "http": {"port": self.port},
            "mqtt": {"url": f"mqtt://127.0.0.1:{broker_port}", "reconnect_max_s": 0.5},
            "server": {"url": server_url},
            "trust": {
                "release_keys": ["release-0.pem", "release-1.pem"],
                "release_threshold": 2,
                "director_keys": ["director.pem"],
            },
            "telemetry": {"window_s": 600.0},
            "update": {"download_attempts": download_attempts, "backoff_max_s": 0.1},
        }
        self.config_file = folder / "agent.toml"
        self.config_file.write_text(tomli_w.dumps(config))

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None and self.process is not None:
            error.add_note(f"the agent wrote: {self.process.output()[-6000:]}")
        self.kill()

    def set(self, **sections: dict[str, Any]) -> None:
        """Add settings to the agent's config, by section."""
        config = tomllib.loads(self.config_file.read_text())
        for name, settings in sections.items():
            config[name] = {**config.get(name, {}), **settings}
        self.config_file.write_text(tomli_w.dumps(config))

    def start(self, plan: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Start the agent, or with a `plan` the dangerous one; see dangerous_agent.py. `env` is added to its own."""
        module = [sys.executable, "-m", "edge_agent"] if plan is None else [sys.executable, _DANGEROUS_AGENT]
        planned = {} if plan is None else {PLAN_VARIABLE: json.dumps(plan)}
        args = [*module, "run", "--config", self.config_file]
        self.process = Process(args, folder=self.folder, name="agent", env={**_ONE_THREAD, **planned, **(env or {})})
        return self.process

    def kill(self) -> None:
        """Kill -9. Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def stop(self) -> None:
        """End in good order."""
        if self.process is not None:
            assert self.process.stop() == 0, self.process.output()
            self.process = None

    def state(self) -> ControlState:
        """What its disk says about its updates."""
        try:
            return msgspec.json.decode((self.data / "control" / "state.json").read_bytes(), type=ControlState)
        except FileNotFoundError:
            return ControlState()

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One request to the local API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException):
            return Answer(0, {})
        finally:
            connection.close()

    def wait_for_health(self, *statuses: int) -> int:
        """Wait until /health answers with one of the statuses, 200 by default."""
        wanted = statuses or (200,)
        assert self.process is not None
        return self.process.wait_ready(
            lambda: (status := self.ask("GET", "/health").status) in wanted and status, WAIT_S, f"/health says {wanted}"
        )

    def read_digit(self) -> Answer:
        """The answer to a real image."""
        return self.ask("POST", "/predict", {"model": MODEL, "inputs": {"image": clear_digit()[0][None].tolist()}})

    def serving(self) -> tuple[str | None, str, str] | None:
        """(bundle, version, phase) that /models tells, None when nothing serves."""
        models = self.ask("GET", "/models").body["models"]
        return next(((m["bundle"], m["version"], m["phase"]) for m in models if m["name"] == MODEL), None)

    def require_answers_of(self, *bundles: Bundle) -> Bundle:
        """Ask for a digit; the one of the bundles whose model really answered."""
        return who_answered(self.read_digit(), *bundles)


def who_answered(answer: Answer, *bundles: Bundle) -> Bundle:
    """The bundle whose very numbers the answer has. Fails for a wrong label, or when it is none of them."""
    image, label = clear_digit()
    assert answer.status == 200, answer
    assert answer.body["label"] == label, answer
    for bundle in bundles:
        if answer.body["version"] == bundle.version:
            np.testing.assert_allclose(
                answer.body["outputs"]["probabilities"][0], bundle.probabilities(image), atol=1e-5
            )
            return bundle
    raise AssertionError(f"version {answer.body['version']} answered, none of {[b.version for b in bundles]}")


class Caller:
    """An application that asks for digits all the time, and keeps every answer. Use it in a `with`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stop = threading.Event()
        self.answers: list[Answer] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int) -> list[Answer]:
        """The next `count` answers from now on."""
        start = len(self.answers)
        wait_until(lambda: len(self.answers) >= start + count, WAIT_S, f"{count} more answers came")
        return self.answers[start : start + count]

    def versions(self) -> set[str]:
        """The versions that answered."""
        return {answer.body["version"] for answer in self.answers if answer.status == 200}

    def _run(self) -> None:
        while not self._stop.wait(_CALL_PAUSE_S):
            self.answers.append(self._device.read_digit())


def now_ns() -> int:
    """The machine's clock, which the agent's reports carry too."""
    return time.time_ns()
