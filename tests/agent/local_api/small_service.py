"""An `InferenceService` over live models, as small as a real one can be, and HTTP spoken by hand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.errors import UnknownPredictionError
from edge_agent.local_api.service import Health, ModelDescription
from edge_agent.prediction import Prediction, winning_class
from edge_agent.runtime.live_models import LiveModels, Serving
from edge_agent.runtime.session import Model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEADLINE_S = 20.0


class SmallService:
    """Serves ONNX files. `gate`, when it is set up, holds every inference until it opens."""

    def __init__(self, files: Mapping[str, Path], *, labels: tuple[str, ...] = ()) -> None:
        self.live = LiveModels()
        self.outcomes: list[tuple[str, object]] = []
        self.gate: threading.Event | None = None
        self.running = 0
        self._counting = threading.Lock()
        self.fault: Exception | None = None
        self._made = 0
        for name, path in files.items():
            model = Model.load(path)
            self.live.swap(
                Serving(
                    name=name,
                    version="1.0.0",
                    variant="fp32",
                    arm="main",
                    bundle=None,
                    model=model,
                    labels=labels,
                    task="classification",
                )
            )

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Prediction:
        serving = self.live.get(model)
        with self._counting:
            self.running += 1
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        if self.fault is not None:
            raise self.fault
        start = time.perf_counter()
        outputs = serving.model.run(inputs)
        class_index, label = winning_class(next(iter(outputs.values())), serving.labels)
        return Prediction(
            outputs=outputs,
            model=serving.name,
            version=serving.version,
            variant=serving.variant,
            arm=serving.arm,
            latency_us=(time.perf_counter() - start) * 1e6,
            label=label,
            class_index=class_index,
            make_id=self._make_id,
        )

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
        ready = bool(self.live.names())
        return Health(ready=ready, reasons=() if ready else ("no model is loaded yet",))

    def describe_models(self) -> list[ModelDescription]:
        return [
            ModelDescription(
                name=serving.name,
                version=serving.version,
                variant=serving.variant,
                arm=serving.arm,
                bundle=serving.bundle,
                phase="HEALTHY",
                inputs=serving.model.inputs,
                outputs=serving.model.outputs,
                labels=serving.labels,
            )
            for serving in self.live.all()
        ]

    def metrics_text(self) -> str:
        return f"edgefleet_models {len(self.live.names())}\n"


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
