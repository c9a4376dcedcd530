"""What the benchmarks make of their figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load import LoadFigures, Recording
from benchmarks.local_soak import slope_per_minute
from benchmarks.peers.peer import Configuration
from benchmarks.peers.side_by_side import CROWD, LONE, Trial, best_configuration
from benchmarks.r7_hot_swap import Swap, judge
from fleet_server.errors import UnavailableError

_MS = 1_000_000
_SECOND = 1000 * _MS
_SWAP = Swap(began_ns=5 * _SECOND, ended_ns=5 * _SECOND + 20 * _MS, status=200, answer_class=6)


def _steady_traffic(*, until_s: int = 9) -> list[tuple[int, int, int, int]]:
    """A request of 2 ms every 2 ms: the class of the first file, and of the second from the swap's middle on."""
    return [
        (sent, sent + 2 * _MS, 200, 5 if sent < _SWAP.began_ns + 10 * _MS else 6)
        for sent in range(0, until_s * _SECOND, 2 * _MS)
    ]


def _recording(records: list[tuple[int, int, int, int]]) -> Recording:
    table = np.array(records, dtype=np.int64)
    return Recording(
        sent_ns=table[:, 0],
        answered_ns=table[:, 1],
        status=table[:, 2].astype(np.int16),
        winner=table[:, 3].astype(np.int16),
    )


def test_a_swap_that_nobody_notices_has_the_steady_latency() -> None:
    figures = judge(_recording(_steady_traffic()), [_SWAP])
    assert figures["p99_us"] == {"swap": 2000, "first_second_after_a_swap_began": 2000, "steady": 2000}
    assert (figures["failed"], figures["stale_answers"], figures["failed_loads"]) == (0, 0, 0)


def test_a_stall_as_long_as_the_load_call_is_seen_though_it_is_one_request_in_thousands() -> None:
    records = [record for record in _steady_traffic() if not _SWAP.began_ns <= record[0] < _SWAP.ended_ns]
    records.append((_SWAP.began_ns, _SWAP.ended_ns, 200, 6))
    figures = judge(_recording(records), [_SWAP])
    assert figures["p99_us"]["swap"] > 18_000
    assert figures["p99_us"]["steady"] == 2000
    assert figures["p99_us"]["first_second_after_a_swap_began"] == 2000


def test_an_answer_of_the_old_file_after_the_load_call_is_stale_and_one_during_it_is_not() -> None:
    records = _steady_traffic()
    late = next(i for i, record in enumerate(records) if record[0] > _SWAP.ended_ns)
    records[late] = (*records[late][:3], 5)
    figures = judge(_recording(records), [_SWAP])
    assert figures["stale_answers"] == 1
    assert figures["failed"] == 0


@pytest.mark.parametrize("bad", [(503, -1), (503, 5), (0, -1), (200, 3), (200, -1)])
def test_a_refusal_a_broken_connection_and_an_answer_of_neither_file_are_failures(bad: tuple[int, int]) -> None:
    records = _steady_traffic()
    records[10] = (*records[10][:2], *bad)
    assert judge(_recording(records), [_SWAP])["failed"] == 1


def test_a_run_without_a_request_in_flight_during_a_swap_is_no_evidence() -> None:
    records = [record for record in _steady_traffic() if record[1] < _SWAP.began_ns]
    with pytest.raises(UnavailableError, match="nothing to compare"):
        judge(_recording(records), [_SWAP])


def _trial(name: str, *, lone_p50_us: float, crowd_per_s: float, failures: int = 0) -> Trial:
    def load(p50_us: float, requests_per_s: float) -> LoadFigures:
        return LoadFigures(requests=1, requests_per_s=requests_per_s, p50_us=p50_us, p99_us=p50_us, failures=failures)

    return Trial(
        configuration=Configuration(name=name), loads={LONE: load(lone_p50_us, 1), CROWD: load(1, crowd_per_s)}
    )


def test_each_load_chooses_its_own_best_configuration_and_never_one_that_fails_requests() -> None:
    trials = [
        _trial("quick", lone_p50_us=300, crowd_per_s=1000),
        _trial("wide", lone_p50_us=500, crowd_per_s=3000),
        _trial("broken", lone_p50_us=1, crowd_per_s=9999, failures=1),
    ]
    assert best_configuration(trials, LONE).name == "quick"
    assert best_configuration(trials, CROWD).name == "wide"


def test_the_slope_is_the_growth_per_minute_and_one_step_does_not_bend_it() -> None:
    seconds = np.arange(480, dtype=np.float64)
    noise = np.random.default_rng(3).normal(0, 20, len(seconds))
    assert slope_per_minute(seconds, 50_000 + 5 * seconds + noise) == pytest.approx(300, abs=5)
    step = np.where(seconds > 400, 2000.0, 0.0)
    assert slope_per_minute(seconds, 50_000 + noise + step) < 60


def test_a_run_that_is_too_short_has_no_slope() -> None:
    with pytest.raises(UnavailableError, match="too short"):
        slope_per_minute(np.array([1.0]), np.array([2.0]))
