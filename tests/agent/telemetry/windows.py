"""Windows and outboxes for tests, with a clock that is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_agent.telemetry.outbox import Outbox
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window, decode, encode
from fleet_protocol.topics import TopicKind

BOOT = "00000001-0000abcd"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def window(sequence: int, *, boot_id: str = BOOT, **changes: Any) -> Window:
    """A window of one series, one inference in it."""
    fields: dict[str, Any] = {
        "device": "d1", "boot_id": boot_id, "sequence": sequence, "model": "m", "version": "1.0.0", "variant": "fp32",
        "arm": "main", "start_ns": sequence * 10, "end_ns": sequence * 10 + 10, "count": 1,
        "latency": LatencyHistogram.of([100.0 + sequence]).to_bytes(),
    }  # fmt: skip
    return Window(**(fields | changes))


def open_outbox(path: Path, clock: Clock | None = None, **changes: Any) -> Outbox:
    """An outbox with room for everything, unless `changes` say otherwise."""
    settings: dict[str, Any] = {"max_bytes": 10**8, "max_age_s": 10**7, "confirm_timeout_s": 100.0}
    return Outbox(path, **(settings | changes), now_s=clock or Clock())


def append(outbox: Outbox, **changes: Any) -> int:
    """Append one window; its sequence."""
    return outbox.append(
        TopicKind.TELEMETRY, lambda sequence: encode(window(sequence, boot_id=outbox.boot_id, **changes))
    )


def waiting(outbox: Outbox) -> list[Window]:
    """The windows that may be published now. They count as handed over from here on."""
    return [decode(Window, record.payload) for record in outbox.pending(100_000)]
