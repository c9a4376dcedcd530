"""An `InferenceService` over ONNX files, as small as a real one can be, and HTTP spoken by hand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.errors import AgentError, UnknownModelError, UnknownPredictionError
from edge_agent.local_api.service import (
    DEFAULT_CALL,
    CallOptions,
    CallStatistics,
    Health,
    ModelDescription,
    RepositoryEntry,
    RepositoryState,
)
from edge_agent.prediction import Prediction, winning_class
from edge_agent.runtime.session import Model
from edge_agent.telemetry.series import SeriesKey

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEADLINE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """One loaded file."""

    name: str
    version: str
    arm: str
    model: Model
    labels: tuple[str, ...]
    max_batch: int
    shadow: bool = False


class SmallService:
    """Serves ONNX files. `gate`, when it is set up, holds every inference until it opens."""

    def __init__(self, files: Mapping[str, Path], *, labels: tuple[str, ...] = (), max_batch: int = 1) -> None:
        self.outcomes: list[tuple[str, object]] = []
        self.calls: list[CallOptions] = []
        self.gate: threading.Event | None = None
        self.running = 0
        self._counting = threading.Lock()
        self.fault: BaseException | None = None
        self._made = 0
        self.paths = dict(files)
        self.labels = labels
        self.max_batch = max_batch
        self.served: dict[str, list[Served]] = {}
        self.counted: dict[tuple[str, str], list[int]] = {}
        for name in files:
            self.load_model(name)

    def add(self, name: str, path: Path, *, version: str, arm: str, shadow: bool = False) -> None:
        """A further arm of `name`, which answers to its version only, or as a shadow not at all."""
        self.served[name].append(replace(self._loaded(name, path, version, arm), shadow=shadow))

    def _loaded(self, name: str, path: Path, version: str, arm: str) -> Served:
        return Served(
            name=name,
            version=version,
            arm=arm,
            model=Model.load(path),
            labels=self.labels,
            max_batch=self.max_batch,
        )

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        serving = self._serving(model, options.version)
        with self._counting:
            self.running += 1
            self.calls.append(options)
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        if self.fault is not None:
            raise self.fault
        start = time.perf_counter()
        outputs = serving.model.run(inputs)
        latency_us = (time.perf_counter() - start) * 1e6
        class_index, label = winning_class(next(iter(outputs.values())), serving.labels)
        with self._counting:
            counted = self.counted.setdefault((model, serving.version), [0, 0])
            counted[0] += 1
            counted[1] += int(latency_us * 1000)
        return Prediction(
            outputs=outputs,
            made_by=SeriesKey(serving.name, serving.version, "fp32", serving.arm),
            latency_us=latency_us,
            label=label,
            class_index=class_index,
            number=0,
            name_it=lambda _: self._make_id(),
        )

    def infer_many(
        self, model: str, items: Sequence[Mapping[str, ArrayLike]], options: CallOptions = DEFAULT_CALL
    ) -> list[Prediction | AgentError]:
        answers: list[Prediction | AgentError] = []
        for item in items:
            try:
                answers.append(self.infer(model, item, options))
            except UnknownModelError:
                raise
            except AgentError as error:
                answers.append(error)
        return answers

    def _serving(self, name: str, version: str | None) -> Served:
        for serving in self.served.get(name, []):
            if version in (None, serving.version):
                return serving
        loaded = ", ".join(sorted(self.served)) or "nothing yet"
        raise UnknownModelError(f"no model {name[:80]!r} is loaded here: loaded is {loaded}")

    def _make_id(self) -> str:
        self._made += 1
        return f"p{self._made}"

    def report_outcome(
        self,
        prediction_id: str,
        *,
        label: int | str | None = None,
        value: float | None = None,
        correct: bool | None = None,
    ) -> None:
        if not prediction_id.startswith("p"):
            raise UnknownPredictionError(f"{prediction_id!r} is not a prediction id")
        self.outcomes.append((prediction_id, next(truth for truth in (label, value, correct) if truth is not None)))

    def health(self) -> Health:
        ready = bool(self.served)
        return Health(ready=ready, reasons=() if ready else ("no model is loaded yet",))

    def describe_models(self) -> list[ModelDescription]:
        return [_described(serving) for _, arms in sorted(self.served.items()) for serving in arms]

    def describe_model(self, name: str) -> ModelDescription:
        return _described(self._serving(name, None))

    def repository(self) -> list[RepositoryEntry]:
        ready = [
            RepositoryEntry(name=serving.name, version=serving.version, state=RepositoryState.READY)
            for arms in self.served.values()
            for serving in arms
        ]
        unloaded = [
            RepositoryEntry(name=name, version="1.0.0", state=RepositoryState.UNAVAILABLE, reason="unloaded")
            for name in self.paths
            if name not in self.served
        ]
        return sorted(ready + unloaded, key=lambda entry: (entry.name, entry.version))

    def load_model(self, name: str) -> None:
        if name not in self.paths:
            raise UnknownModelError(f"no model {name[:80]!r} is configured here")
        self.served[name] = [self._loaded(name, self.paths[name], "1.0.0", "main")]

    def unload_model(self, name: str) -> None:
        if name not in self.paths:
            raise UnknownModelError(f"no model {name[:80]!r} is configured here")
        self.served.pop(name, None)

    def statistics(self) -> list[CallStatistics]:
        return [
            CallStatistics(
                name=name,
                version=version,
                arm="main",
                successes=count,
                failures=0,
                last_at_ms=1,
                total_ns=ns,
                queue_ns=0,
                run_ns=ns,
                batches={1: count},
            )
            for (name, version), (count, ns) in sorted(self.counted.items())
        ]

    def metrics_text(self) -> str:
        return f"edgefleet_models {len(self.served)}\n"


def _described(serving: Served) -> ModelDescription:
    return ModelDescription(
        name=serving.name,
        version=serving.version,
        variant="fp32",
        arm=serving.arm,
        bundle=None,
        phase="HEALTHY",
        inputs=serving.model.inputs,
        outputs=serving.model.outputs,
        labels=serving.labels,
        max_batch=serving.max_batch,
        shadow=serving.shadow,
    )


@dataclass
class Answer:
    """A response as it came over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A raw HTTP connection: sends any bytes, reads one response at a time."""

    def __init__(self, address: int | Path) -> None:
        if isinstance(address, Path):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(DEADLINE_S)
            self.socket.connect(str(address))
        else:
            self.socket = socket.create_connection(("127.0.0.1", address), timeout=DEADLINE_S)
        self._read = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> Client:
        self.socket.sendall(content)
        return self

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next response; EOFError when the server closed instead."""
        while b"\r\n\r\n" not in self._read:
            self._receive()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._read) < size:
            self._receive()
        body, self._read = self._read[:size], self._read[size:]
        return Answer(int(first.split()[1]), headers, body)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One whole request; a body that is not bytes is sent as JSON."""
        self.send(request(method, path, body, **headers))
        return self.answer(head_only=method == "HEAD")

    def is_closed(self) -> bool:
        """Whether the server closes the connection, waiting for it to."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        content = self.socket.recv(65_536)
        if not content:
            raise EOFError(self._read)
        self._read += content


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """The bytes of a request; `content_type="x"` becomes the header Content-Type: x."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: device"]
    if body is not None:
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)
