"""The telemetry room's front: takes what happens on the serving path, closes windows, fills the outbox.

Invariants:
- the serving path never waits: it appends to a series' samples, and copies the inputs of a sampled call; nothing an
  application calls waits for the disk;
- what sampling and the rest of telemetry cost stays within a share of one core (`call_sampling`);
- windows follow each other without gap or overlap as the monotonic clock counts it (`spans`);
- a window that was closed is in the outbox before the next one is closed;
- an outcome that was reported is counted by exactly one window, also when this process is killed meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import UserError
from edge_agent.service.heartbeat import Heartbeat
from edge_agent.telemetry.call_sampling import SamplingBudget
from edge_agent.telemetry.outcome_book import OutcomeBook
from edge_agent.telemetry.outcome_journal import ReportedOutcome
from edge_agent.telemetry.prediction_ids import PredictionId
from edge_agent.telemetry.series import Series, SeriesKey, ServingStats, Totals
from edge_agent.telemetry.spans import Spans
from edge_agent.telemetry.waiting_samples import CallSample, WaitingSamples, copied, joined, together
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Event, EventKind, OutboxStatus, Phase, Resources, Window, encode
from fleet_protocol.topics import TopicKind

_LOG = logging.getLogger(__name__)
_DRAIN_INTERVAL_S = 0.25
_MAX_SERIES = 256
SAMPLES_PER_WINDOW = 500  # more of one series tell a fleet little: two devices know a bin's share to half a percent
_SAMPLES_PER_S = 1.0  # of a window that is longer than so many seconds
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
        max_cpu_percent: float = 1.0,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._device, self._window_s, self._outbox = device, window_s, outbox
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self.on_record: Callable[[], None] = lambda: None
        self._probe: ResourceProbe | None = None
        if outbox is not None:
            from edge_agent.telemetry.resources import ResourceProbe

            self._probe = ResourceProbe(data_dir)
        self._lock = threading.RLock()
        self._series: dict[SeriesKey, Series] = {}
        self._serving: frozenset[SeriesKey] = frozenset()
        self._samples: WaitingSamples[Series] = WaitingSamples()
        self._absorbed_s = 0.0
        self._budget = SamplingBudget(
            max_cpu_share=max_cpu_percent / 100,
            most_per_s=max(SAMPLES_PER_WINDOW / window_s, _SAMPLES_PER_S),
            start_s=time.monotonic(),
        )
        self._outcomes = self._outcomes_left()
        self._overflow_reported = OutboxStatus()
        self._spans = Spans(now_ns=wall_ns(), monotonic_ns=monotonic_ns())
        self.windows_closed = 0
        self.heartbeat = Heartbeat()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def _outcomes_left(self) -> OutcomeBook:
        """What an earlier process counted; what it had not told is counted again, in this boot's first window."""
        if self._outbox is None:
            return OutcomeBook(keeps=False)
        left = self._outbox.open_outcomes()
        for outcome in left:
            key = SeriesKey(outcome.model, outcome.version, outcome.variant, outcome.arm)
            series = self._series.setdefault(key, Series(key))
            series.add_outcome(correct=outcome.correct, squared_error=outcome.squared_error)
        return OutcomeBook(counted=self._outbox.counted_outcomes(), left_open=left)

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
                embedding = manifest.random_features
                series.watch(
                    tuple(manifest.features),
                    manifest.score,
                    confidence=manifest.confidence,
                    task=manifest.task,
                    embedding=embedding,
                    embedding_is_output=embedding is not None
                    and embedding.tensor not in {tensor.name for tensor in manifest.inputs},
                )
            return series

    def set_serving(self, keys: frozenset[SeriesKey]) -> None:
        """The series that serve now; the others end with their next window."""
        self._serving = keys

    def sample_inputs(self, series: Series, inputs: Inputs, outputs: Inputs | None = None) -> None:
        """Keep a copy of a sampled call's inputs for its features. On the serving path, where the sampler takes a call.

        Its `outputs` are copied too where the series needs them, for the answer's score or as the embedding.
        """
        start_ns = time.perf_counter_ns()
        kept, size_bytes = copied(inputs)
        if kept is None:
            return
        answers = None
        if outputs is not None and series.needs_outputs:
            answers, more_bytes = copied(outputs)
            size_bytes += more_bytes
        cost_s = (time.perf_counter_ns() - start_ns) / 1e9
        if not self._samples.put(CallSample(series, kept, answers, size_bytes, cost_s)):
            self._budget.halve(self._series.copy())

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
        key = SeriesKey(made.model, made.version, made.variant, made.arm)
        with self._lock:
            if self._outcomes.has((made.boot_id, made.number)):
                return False
            if key not in self._series and len(self._series) >= _MAX_SERIES:
                raise UserError(f"outcomes for more than {_MAX_SERIES} model versions in one window: report fewer")
            series = self._series.setdefault(key, Series(key))
            series.add_outcome(correct=correct, squared_error=squared_error)
            self._outcomes.add(ReportedOutcome(made.boot_id, made.number, *series.key, correct, squared_error))
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
            self.heartbeat.beat()
            try:
                started_s, self._absorbed_s = time.thread_time(), 0.0
                self._drain()
                self._journal()
                self._follow_clock()
                if time.monotonic() >= deadline:
                    deadline += self._window_s * max(1, (time.monotonic() - deadline) // self._window_s + 1)
                    self.close_window()
                with self._lock:
                    self._budget.others_spent(max(0.0, time.thread_time() - started_s - self._absorbed_s))
            except Exception:  # noqa: BLE001 - a bug in one round must not end telemetry
                _LOG.exception("telemetry failed on one round; it goes on with the next")

    def _drain(self) -> None:
        with self._lock:
            for series in self._series.values():
                series.absorb()
            for group in together(self._samples.take()):
                self._absorb_samples(group)
            self._budget.adapt(self._series, time.monotonic())

    def _absorb_samples(self, group: Sequence[CallSample[Series]]) -> None:
        """Count calls of one series that are alike, as one batch; one by one where that fails, for one of them."""
        series, started_s = group[0].series, time.thread_time()
        try:
            series.absorb_inputs(
                joined([sample.inputs for sample in group]),
                joined([sample.outputs for sample in group if sample.outputs is not None]) or None,
            )
        except Exception as error:  # noqa: BLE001 - one unfit input must not keep any window from closing
            if len(group) > 1:
                for sample in group:
                    self._absorb_samples([sample])
                return
            _LOG.warning("features of %s %s were not counted: %s", series.key.model, series.key.version, error)
        cost_s = time.thread_time() - started_s
        self._absorbed_s += cost_s
        cost_s += sum(sample.cost_s for sample in group)
        self._budget.spent(series.key, calls=len(group), cost_s=cost_s)

    def _journal(self) -> None:
        if self._outbox is None:
            return
        with self._lock:
            outcomes = self._outcomes.take_new()
        self._outbox.journal(outcomes)

    def _follow_clock(self) -> None:
        """When the clock was set for the first time, what was told before moves with it."""
        with self._lock:
            by_ns = self._spans.set_for_the_first_time(now_ns=self._wall_ns(), monotonic_ns=self._monotonic_ns())
        if by_ns and self._outbox is not None:
            _LOG.info("the clock was set: the windows of this boot move by %.0f s", by_ns / 1e9)
            self._outbox.move_times(by_ns)
            self.on_record()

    def close_window(self) -> None:
        """Put the window so far into the outbox, one record per series, and begin the next."""
        outbox = self._outbox
        if outbox is None or self._probe is None:
            return
        self._follow_clock()
        resources, status = self._probe.read(), outbox.status()
        for window, outcomes in self._take_windows(resources, status):  # no lock: a slow disk delays no outcome
            outbox.append(
                TopicKind.TELEMETRY,
                lambda sequence, window=window: encode(  # type: ignore[misc] # mypy cannot see a bound default
                    window(device=self._device, boot_id=outbox.boot_id, sequence=sequence)
                ),
                counts=outcomes,
            )
            self.windows_closed += 1
        self._report_overflow(status)
        self.on_record()

    def _take_windows(
        self, resources: Resources, status: OutboxStatus
    ) -> list[tuple[Callable[..., Window], list[ReportedOutcome]]]:
        """End the window of every series that serves or has something to tell; forget the long idle ones."""
        taken = []
        with self._lock:
            self._drain()
            start_ns, end_ns = self._spans.cut(now_ns=self._wall_ns(), monotonic_ns=self._monotonic_ns())
            for key, series in list(self._series.items()):
                if key in self._serving or series.has_something:
                    series.idle_windows = 0
                    window = series.close_window(start_ns=start_ns, end_ns=end_ns, resources=resources, outbox=status)
                    taken.append((window, self._outcomes.take_open(key)))
                else:
                    series.idle_windows += 1
                    if series.idle_windows > _IDLE_WINDOWS_KEPT:
                        del self._series[key]
        return taken

    def _report_overflow(self, status: OutboxStatus) -> None:
        before, self._overflow_reported = self._overflow_reported, status
        if status.dropped > before.dropped:
            self.emit(EventKind.OUTBOX_OVERFLOW, detail=f"{status.dropped - before.dropped} records dropped")
