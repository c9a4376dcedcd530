"""R7: what reloading a model costs the callers: every 5 s for a minute, under 16 clients that never pause.

The file is replaced by an atomic rename and reloaded by POST /v2/repository/models/kws/load, alternating between the
keyword model and a copy with its classes turned by one, so that every answer tells which file gave it. Compared are,
within the one run:
- swap: the requests in flight while a load call was (sent before it ended, answered after it began). The narrowest
  window there is: over a longer one, thousands of undisturbed requests would hide a stall of all 16 clients;
- steady: the requests in flight in windows as long as that load call, some seconds after it. In flight as well, not
  all of them: whatever is in flight at a given moment is longer than the average, with or without a swap.
Failed are answers other than 200, broken connections and answers of neither file; stale are answers of the old file
to requests that were sent after the load call had been answered. Both must be none.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import SOCKET_TIMEOUT_S, Recording, RecordingClient, Request, read_answer
from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.running import EXPECTED_CLASS, Running, model_folder, running
from benchmarks.result import Result
from fleet_server.errors import UnavailableError

ID = "R7"
TITLE = "p99 in flight during a hot swap over steady p99, a swap every 5 s under 16 clients, no failed request"
TARGET = 2.0
CLIENTS = 16
WARM_UP_S = 3.0
SWAP_EVERY_S = 5.0
SWAPS = 12
STEADY_AFTER_S = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
"""Where the steady windows of a swap begin, counted from the end of its load call."""
CLASSES = 12
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One load call in CLOCK_MONOTONIC nanoseconds, and the class that the utterance has in the file it loaded."""

    began_ns: int
    ended_ns: int
    status: int
    answer_class: int


def run() -> Result:
    """Serve, swap, record, judge."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-r7-") as name:
        folder = Path(name)
        files = _two_models(folder)
        served = folder / "kws.onnx"
        served.write_bytes(files[0].read_bytes())
        python, configuration = Path(sys.executable), EDGEFLEET.configurations[0]
        with running(EDGEFLEET, python, configuration, model=served) as server:
            recording, swaps = _swap_under_load(server, served, files)
            memory = server.memory()
    figures = judge(recording, swaps)
    ratio = figures["p99_us"]["swap"] / figures["p99_us"]["steady"]
    clean = figures["failed"] == figures["stale_answers"] == figures["failed_loads"] == 0
    return Result(
        id=ID,
        title=TITLE,
        ratio=round(ratio, 3),
        target=f"<= {TARGET}, 0 failed, 0 stale",
        holds=clean and ratio <= TARGET,
        figures={**figures, **memory, "clients": CLIENTS, "swap_every_s": SWAP_EVERY_S},
    )


def judge(recording: Recording, swaps: Sequence[Swap]) -> dict[str, Any]:
    """The figures of a run. Raises UnavailableError when there is nothing on one side to compare."""
    sent, answered = recording.sent_ns, recording.answered_ns
    latency_us = (answered - sent) / 1000
    steady, swapping, within_a_second, stale = (np.zeros(len(sent), dtype=bool) for _ in range(4))

    def in_flight(began_ns: int, ended_ns: int) -> NDArray[np.bool_]:
        return (answered >= began_ns) & (sent <= ended_ns)

    for number, swap in enumerate(swaps):
        swapping |= in_flight(swap.began_ns, swap.ended_ns)
        within_a_second |= in_flight(swap.began_ns, swap.began_ns + _SECOND_NS)
        for after_s in STEADY_AFTER_S:
            began_ns = swap.ended_ns + int(after_s * _SECOND_NS)
            steady |= in_flight(began_ns, began_ns + swap.ended_ns - swap.began_ns)
        following = swaps[number + 1].began_ns if number + 1 < len(swaps) else np.iinfo(np.int64).max
        since = (sent > swap.ended_ns) & (answered < following)
        stale |= since & (recording.status == 200) & (recording.winner != swap.answer_class)
    known = {swap.answer_class for swap in swaps} | {EXPECTED_CLASS}
    failed = (recording.status != 200) | ~np.isin(recording.winner, list(known))
    if not (steady.any() and swapping.any()):
        raise UnavailableError("no request was in flight during a swap, or none was steady: nothing to compare")
    windows = {"swap": swapping, "first_second_after_a_swap_began": within_a_second, "steady": steady}
    return {
        "p99_us": {name: _percentile(latency_us[chosen], 99) for name, chosen in windows.items()},
        "p50_us": {name: _percentile(latency_us[chosen], 50) for name, chosen in windows.items()},
        "max_us": {name: _percentile(latency_us[chosen], 100) for name, chosen in windows.items()},
        "requests": {"all": len(sent)} | {name: int(chosen.sum()) for name, chosen in windows.items()},
        "swaps": len(swaps),
        "load_call_ms": [round((swap.ended_ns - swap.began_ns) / 1e6, 1) for swap in swaps],
        "failed": int(failed.sum()),
        "failed_by_status": {
            str(code): int((recording.status == code).sum()) for code in set(recording.status[failed])
        },
        "failed_loads": sum(swap.status != 200 for swap in swaps),
        "stale_answers": int(stale.sum()),
    }


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 1)


def _swap_under_load(server: Running, served: Path, files: Sequence[Path]) -> tuple[Recording, list[Swap]]:
    client = RecordingClient(
        port=server.port,
        request=server.request,
        connections=CLIENTS,
        duration_s=WARM_UP_S + SWAPS * SWAP_EVERY_S,
        folder=server.folder,
    )
    try:
        begin = time.monotonic() + WARM_UP_S
        swaps = []
        for number in range(SWAPS):
            time.sleep(max(0.0, begin + (number + 0.5) * SWAP_EVERY_S - time.monotonic()))
            turned = (number + 1) % 2
            fresh = served.with_suffix(".new")
            fresh.write_bytes(files[turned].read_bytes())
            fresh.replace(served)
            swaps.append(_load(server.port, (EXPECTED_CLASS + turned) % CLASSES))
        return client.wait(), swaps
    finally:
        client.stop()


def _load(port: int, answer_class: int) -> Swap:
    request = Request(path="/v2/repository/models/kws/load", body=b"{}").raw(port)
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT_S) as connection:
        began_ns = time.monotonic_ns()
        connection.sendall(request)
        status, _ = read_answer(connection)
        return Swap(began_ns=began_ns, ended_ns=time.monotonic_ns(), status=status, answer_class=answer_class)


def _two_models(folder: Path) -> tuple[Path, Path]:
    """The keyword model, and a copy whose class n is the original's class n - 1."""
    import onnx
    from onnx import helper, numpy_helper

    plain = model_folder() / "kws.onnx"
    model = onnx.load(plain)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before_turn" if name == output else name for name in node.output]
    order = np.roll(np.arange(CLASSES, dtype=np.int64), 1)
    model.graph.initializer.append(numpy_helper.from_array(order, "turn_order"))
    model.graph.node.append(helper.make_node("Gather", ["before_turn", "turn_order"], [output], axis=1, name="turn"))
    turned = folder / "turned.onnx"
    onnx.save(model, turned)
    return plain, turned
