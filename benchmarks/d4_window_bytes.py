"""D4: bytes of a window with ten features, plain and as it travels.

Real digits and keywords on a real agent: latency histogram, ten classes or more, score, outcomes, estimated accuracy,
resources; windows of 1,000 and of 60,000 inferences. The sums of 256 random features, of bundles that watch an
embedding, are no feature: windows with them stand beside. The windows are
those that the recorder put into the outbox. A window of 60,000 is made in seconds, so the sampling's rate is set to
what it would be in a minute. Reported beside them: what other ways of packing the very same windows make of them.
"""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np

from benchmarks.result import Result
from benchmarks.telemetry.real_traffic import NAMES, Traffic, agent_with, endless, traffic
from edge_agent.telemetry.recorder import SAMPLES_PER_WINDOW
from fleet_protocol.embedding_sums import decode_sums
from fleet_protocol.messages import Window, decode, encode, encode_plain
from fleet_protocol.topics import TopicKind

ID = "D4"
TITLE = (
    "bytes of a window with ten features over 2,048 (plain) and 1,024 (packed), the worst; with embedding sums beside"
)
PLAIN_BYTES, PACKED_BYTES = 2_048, 1_024
INFERENCES = (1_000, 60_000)


def run() -> Result:
    """Make every window and weigh it."""
    cases: list[dict[str, Any]] = []
    for name in NAMES:
        given = traffic(name)
        for count in INFERENCES:
            for embedding in (False, True):
                window = _window(given, count, embedding=embedding)
                cases.append({"model": name, "inferences": count, "embedding": embedding, **_weigh(window)})
    ratio = _worst(cases, embedding=False)
    figures: dict[str, Any] = {
        "cases": cases,
        "worst_with_embedding": round(_worst(cases, embedding=True), 3),
    }
    return Result(id=ID, title=TITLE, ratio=round(ratio, 3), target="<= 1.0", holds=ratio <= 1.0, figures=figures)


def _worst(cases: list[dict[str, Any]], *, embedding: bool) -> float:
    chosen = [case for case in cases if case["embedding"] is embedding]
    return float(max(max(case["plain"] / PLAIN_BYTES, case["packed"] / PACKED_BYTES) for case in chosen))


def _window(given: Traffic, count: int, *, embedding: bool) -> Window:
    with agent_with(given, window_s=3_600.0, embedding=embedding) as agent:
        calls = endless(given)
        start_s = time.perf_counter()
        for _ in range(200):
            agent.infer(given.name, next(calls))
        expected_s = (time.perf_counter() - start_s) / 200 * count
        recorder = agent._recorder
        recorder.close_window()
        recorder._budget._most_per_s, recorder._budget._max_cpu_share = SAMPLES_PER_WINDOW / expected_s, 1.0
        (series,) = recorder._series.values()
        series.sampler.set_interval(max(1.0, count / SAMPLES_PER_WINDOW), recorder._budget._random)
        for number in range(count):
            made = agent.infer(given.name, next(calls))
            if number % 100 == 0:
                agent.report_outcome(made.id, correct=number % 1_000 > 0)
            if count <= SAMPLES_PER_WINDOW and number % 100 == 0:
                recorder._drain()  # as the telemetry thread does in the sixteenth of a second that this stands for
        recorder.close_window()
        records = recorder._outbox.pending(100)
    windows = [decode(Window, record.payload) for record in records if record.kind is TopicKind.TELEMETRY]
    return next(window for window in windows if window.count == count)


def _weigh(window: Window) -> dict[str, Any]:
    plain = encode_plain(window)
    return {
        "plain": len(plain),
        "packed": len(encode(window)),
        "sampled": window.embedding_count or None,
        "of_plain": {
            "features": sum(map(len, window.features.values())),
            "latency": len(window.latency),
            "queue_wait": len(window.queue_wait),
            "score": len(window.score),
            "embedding_sums": len(window.embedding_sums),
        },
        "other_ways": {
            "zlib without a dictionary": len(zlib.compress(plain, 9)),
            "bound for embedding sums": _least_bytes_of_sums(window),
        },
    }


def _least_bytes_of_sums(window: Window) -> int:
    """The entropy of normal numbers of the sums' variance: no lossless code of independent sums is smaller."""
    sums = decode_sums(window.embedding_sums)
    if not len(sums):
        return 0
    bits = 0.5 * np.log2(2 * np.pi * np.e * max(float(np.mean(np.square(sums.astype(np.float64)))), 1.0))
    return int(np.ceil(len(sums) * bits / 8))
