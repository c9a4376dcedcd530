"""The telemetry room's front: takes what happens on the serving path, closes windows, fills the outbox.

Invariants:
- the serving path never waits: it appends to a series' samples; a sample of inputs is copied only while there
  is room for it; nothing an application calls waits for the disk;
- windows follow each other without gap or overlap as the monotonic clock counts it; a jump of the wall clock
  moves the next window's start, never a window's length;
- a window that was closed is in the outbox before the next one is closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import UserError
from edge_agent.telemetry.prediction_ids import PredictionId
from edge_agent.telemetry.series import Series, SeriesKey, ServingStats, Totals
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Event, EventKind, OutboxStatus, Phase, Resources, Window, encode
from fleet_protocol.topics import TopicKind

_LOG = logging.getLogger(__name__)
_DRAIN_INTERVAL_S = 0.25
_MAX_INPUTS_WAITING = 256  # sampled inputs held for feature extraction; beyond it a call is counted unsampled
_MAX_INPUT_BYTES = 256 * 1024  # inputs larger than this are not copied for features
_MAX_OUTCOMES_REMEMBERED = 20_000  # ids whose outcome was counted, against a caller that repeats itself
_MAX_SERIES = 256
_CLOCK_JUMP_NS = 500_000_000  # the wall clock differs more from the monotonic one: somebody set it
_IDLE_WINDOWS_KEPT = 2  # a call that began before a swap may still finish after the next window

if TYPE_CHECKING:
    from edge_agent.telemetry.outbox import Outbox
    from edge_agent.telemetry.resources import ResourceProbe

Inputs = Mapping[str, NDArray[np.generic]]


class Recorder:
    """Owns every series of this agent. `outbox` None keeps counters only (an agent without a fleet)."""

    def __init__(
        self,
        *,
        device: str,
        window_s: float,
        outbox: Outbox | None,
        data_dir: Path | None,
    ) -> None:
        self._device, self._window_s, self._outbox = device, window_s, outbox
        self.on_record: Callable[[], None] = lambda: None
        self._probe: ResourceProbe | None = None
        if outbox is not None:
            from edge_agent.telemetry.resources import ResourceProbe

            self._probe = ResourceProbe(data_dir)
        self._lock = threading.RLock()
        self._series: dict[SeriesKey, Series] = {}
        self._serving: frozenset[SeriesKey] = frozenset()
        self._inputs: deque[tuple[Series, Inputs, Inputs | None]] = deque()
        self._outcomes_seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._overflow_reported = OutboxStatus()
        self._start_ns, self._start_monotonic_ns = time.time_ns(), time.monotonic_ns()
        self.windows_closed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Start closing windows."""
        self._thread.start()

    def stop(self) -> None:
        """End. `close_window` first keeps what was counted since the last window."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def serve(self, key: SeriesKey, manifest: Manifest | None) -> Series:
        """The series for a model that starts serving; it gets a window from now on even when idle."""
        with self._lock:
            series = self._series.setdefault(key, Series(key))  # there already where only outcomes came in
            if manifest is not None:
                series.watch(
                    tuple(manifest.features), manifest.score, confidence=manifest.confidence, task=manifest.task
                )
            return series

    def set_serving(self, keys: frozenset[SeriesKey]) -> None:
        """The series that serve now; the others end with their next window."""
        self._serving = keys

    def sample_inputs(self, series: Series, inputs: Inputs, outputs: Inputs | None = None) -> None:
        """Keep a copy of an answered call's inputs for its features, while there is room. On the serving path.

        Its `outputs` are copied too where the series needs them for the answer's score.
        """
        if len(self._inputs) >= _MAX_INPUTS_WAITING:
            return
        if sum(array.nbytes for array in inputs.values()) <= _MAX_INPUT_BYTES:
            answers = _copied(outputs) if outputs is not None and series.needs_outputs else None
            self._inputs.append((series, {name: array.copy() for name, array in inputs.items()}, answers))

    def record_error(self, series: Series, kind: str) -> None:
        """Count a failed inference by the kind of its error."""
        with self._lock:
            series.add_error(kind)

    def record_shadow(self, series: Series, *, disagreed: bool) -> None:
        """Count a shadow's run against what answered."""
        with self._lock:
            series.add_comparison(disagreed=disagreed)

    def record_outcome(self, made: PredictionId, *, correct: bool | None, squared_error: float | None) -> bool:
        """Credit an outcome to what predicted. False when this id's outcome was counted before."""
        identity = (made.boot_id, made.number)
        key = SeriesKey(made.model, made.version, made.variant, made.arm)
        with self._lock:
            if identity in self._outcomes_seen:
                return False
            if key not in self._series and len(self._series) >= _MAX_SERIES:
                raise UserError(f"outcomes for more than {_MAX_SERIES} model versions in one window: report fewer")
            self._outcomes_seen[identity] = None
            if len(self._outcomes_seen) > _MAX_OUTCOMES_REMEMBERED:
                self._outcomes_seen.popitem(last=False)
            self._series.setdefault(key, Series(key)).add_outcome(correct=correct, squared_error=squared_error)
            return True

    def emit(
        self, kind: EventKind, *, model: str = "", bundle: str = "", phase: Phase | None = None, detail: str = ""
    ) -> None:
        """Put an event into the outbox."""
        outbox = self._outbox
        if outbox is None:
            return
        now_ns = time.time_ns()
        outbox.append(
            TopicKind.EVENTS,
            lambda sequence: encode(
                Event(
                    device=self._device,
                    boot_id=outbox.boot_id,
                    sequence=sequence,
                    at_ns=now_ns,
                    kind=kind,
                    model=model,
                    bundle=bundle,
                    phase=phase,
                    detail=detail[:2000],
                )
            ),
        )
        self.on_record()

    def stats(self, key: SeriesKey) -> ServingStats:
        """What a series did since this process started."""
        self._drain()
        with self._lock:
            series = self._series.get(key)
            return series.stats() if series else ServingStats(0, 0, LatencyHistogram())

    def all_stats(self) -> dict[SeriesKey, ServingStats]:
        """`stats` of every series."""
        self._drain()
        with self._lock:
            return {key: series.stats() for key, series in self._series.items()}

    def totals(self) -> dict[SeriesKey, Totals]:
        """Sums over all calls of every series since the start."""
        self._drain()
        with self._lock:
            return {key: series.totals() for key, series in self._series.items()}

    def outbox_status(self) -> OutboxStatus:
        """Depth, drops and merges of the outbox; zeros without one."""
        return self._outbox.status() if self._outbox else OutboxStatus()

    def _run(self) -> None:
        deadline = time.monotonic() + self._window_s
        while not self._stop.wait(max(0.0, min(_DRAIN_INTERVAL_S, deadline - time.monotonic()))):
            try:
                self._drain()
                if time.monotonic() >= deadline:
                    deadline += self._window_s * max(1, (time.monotonic() - deadline) // self._window_s + 1)
                    self.close_window()
            except Exception:  # noqa: BLE001 - a bug in one round must not end telemetry
                _LOG.exception("telemetry failed on one round; it goes on with the next")

    def _drain(self) -> None:
        with self._lock:
            for series in self._series.values():
                series.absorb()
            for _ in range(len(self._inputs)):
                series, inputs, outputs = self._inputs.popleft()
                try:
                    series.absorb_inputs(inputs, outputs)
                except Exception as error:  # noqa: BLE001 - one unfit input must not keep any window from closing
                    _LOG.warning("features of %s %s were not counted: %s", series.key.model, series.key.version, error)

    def close_window(self) -> None:
        """Put the window so far into the outbox, one record per series, and begin the next."""
        outbox = self._outbox
        if outbox is None or self._probe is None:
            return
        resources, status = self._probe.read(), outbox.status()
        for window in self._take_windows(resources, status):  # without the lock: a slow disk delays no outcome
            outbox.append(
                TopicKind.TELEMETRY,
                lambda sequence, window=window: encode(  # type: ignore[misc] # mypy cannot see a bound default
                    window(device=self._device, boot_id=outbox.boot_id, sequence=sequence)
                ),
            )
            self.windows_closed += 1
        self._report_overflow(status)
        self.on_record()

    def _take_windows(self, resources: Resources, status: OutboxStatus) -> list[Callable[..., Window]]:
        """End the window of every series that serves or has something to tell; forget the long idle ones."""
        taken = []
        with self._lock:
            self._drain()
            now_monotonic_ns, now_ns = time.monotonic_ns(), time.time_ns()
            start_ns = self._start_ns
            end_ns = start_ns + now_monotonic_ns - self._start_monotonic_ns
            jumped = abs(now_ns - end_ns) > _CLOCK_JUMP_NS
            self._start_ns, self._start_monotonic_ns = now_ns if jumped else end_ns, now_monotonic_ns
            for key, series in list(self._series.items()):
                if key in self._serving or series.has_something:
                    series.idle_windows = 0
                    taken.append(
                        series.close_window(start_ns=start_ns, end_ns=end_ns, resources=resources, outbox=status)
                    )
                else:
                    series.idle_windows += 1
                    if series.idle_windows > _IDLE_WINDOWS_KEPT:
                        del self._series[key]
        return taken

    def _report_overflow(self, status: OutboxStatus) -> None:
        before, self._overflow_reported = self._overflow_reported, status
        if status.dropped > before.dropped:
            self.emit(EventKind.OUTBOX_OVERFLOW, detail=f"{status.dropped - before.dropped} records dropped")


def _copied(outputs: Inputs) -> Inputs | None:
    """A copy of an answer, which its caller may change; None of one that is too large."""
    if sum(array.nbytes for array in outputs.values()) > _MAX_INPUT_BYTES:
        return None
    return {name: array.copy() for name, array in outputs.items()}
