"""What tests of residency open, load and wait for."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.errors import (
    AgentError,
)
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.session import Model
from tests.agent.runtime import onnx_files

MB = 1_000_000
ONES = {"x": np.ones((1, 3), dtype=np.float32)}


class Opened:
    """Residencies of one test, and what they told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, str, str]] = []
        self._all: list[Residency] = []

    def __call__(self, budget_bytes: int | None = None) -> Residency:
        self._all.append(Residency(budget_bytes=budget_bytes, on_event=lambda *event: self.told.append(event)))
        return self._all[-1]

    def add(
        self,
        residency: Residency,
        name: str,
        *,
        weight: float = 2.0,
        pinned: bool = False,
        must_answer: bool = True,
    ) -> ModelSlot:
        """A small model; what it takes is nearly all ONNX Runtime's own, 1.1 to 1.5 MB."""
        path = onnx_files.linear(self.folder / f"{name}.onnx", weight=weight)
        size = path.stat().st_size
        return residency.add(name, loader(path), size_hint_bytes=size, pinned=pinned, must_answer=must_answer)

    def close(self) -> None:
        for residency in self._all:
            residency.close()


@contextmanager
def opened_in(folder: Path) -> Iterator[Opened]:
    """Residencies whose files are in `folder`, all closed in the end."""
    gc.collect()  # the garbage of other tests, freed during a load, would make a model look smaller
    made = Opened(folder)
    try:
        yield made
    finally:
        made.close()


def loader(path: Path) -> Callable[[], Model]:
    def load() -> Model:
        model = Model.load(path)
        model.warm()
        return model

    return load


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {timeout_s} s"
        time.sleep(0.002)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `call` beside the test; the list gets its answer or the error it raised."""
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(call())
        except AgentError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


def sleeps(slot: ModelSlot) -> bool:
    return slot.model is None


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edgefleet-loader"]


def awake(residency: Residency) -> list[str]:
    return [fact.name for fact in residency.resident() if not fact.asleep]


def large_file_in(folder: Path, *, layers: int = 1) -> Path:
    """A model with 50 MB of weights, in so many equal layers."""
    size = int((12_500_000 / layers) ** 0.5)
    random = np.random.default_rng(0)
    names = ["x", *(f"y{layer}" for layer in range(layers))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", size])],
        [
            numpy_helper.from_array(random.standard_normal((size, size), dtype=np.float32) / size, f"w{layer}")
            for layer in range(layers)
        ],
    )
    path = folder / "large.onnx"
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
