"""Which requests the connections' thread answers itself: measured, never guessed, and never one that would wait."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import WouldWaitError
from edge_agent.local_api.inline import (
    MAX_BODY_BYTES,
    MAX_CLOCK_S,
    MAX_COST_S,
    MAX_CROWDED_COST_S,
    MAX_KINDS,
    MAX_PENALTY_S,
    PENALTY_S,
    SAMPLES_NEEDED,
    AtOnce,
    Kind,
    Kinds,
)
from edge_agent.local_api.routes import Request
from edge_agent.local_api.server import MAX_INLINE_STREAK, LocalApi
from edge_agent.local_api.service import DEFAULT_CALL, CallOptions
from edge_agent.prediction import Prediction
from tests.agent.local_api.small_service import DEADLINE_S, Client, SmallService, request, wait_until
from tests.agent.runtime import onnx_files

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

YES = {"inputs": {"x": [[1, 2, 3]]}}
LOOP = "edgefleet-local-api"


class WatchedService(SmallService):
    """Notes the thread of every call; `cost_s` of processor time or `pause_s` of waiting make a call dear."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(files)
        self.threads: list[str] = []
        self.cost_s = 0.0
        self.pause_s = 0.0
        self.is_busy = False

    def infer(self, model: str, inputs: Mapping[str, ArrayLike], options: CallOptions = DEFAULT_CALL) -> Prediction:
        if self.is_busy and not options.may_wait:
            self.calls.append(options)
            raise WouldWaitError(model)
        self.threads.append(threading.current_thread().name)
        began = time.thread_time()
        while time.thread_time() - began < self.cost_s:
            pass
        time.sleep(self.pause_s)
        return super().infer(model, inputs, options)


@pytest.fixture
def watched(tmp_path: Path) -> WatchedService:
    return WatchedService({"linear": onnx_files.linear(tmp_path / "linear.onnx")})


@pytest.fixture
def client(watched: WatchedService) -> Iterator[Client]:
    with LocalApi(service=watched, host="127.0.0.1", port=0) as api, Client(api.port or 0) as client:
        yield client


def make_known(client: Client, watched: WatchedService) -> None:
    """Ask until the answer is given inline; a busy machine may make a few answers look dear."""
    deadline = time.monotonic() + DEADLINE_S
    while not watched.threads or watched.threads[-1] != LOOP:
        assert client.ask("POST", "/predict", YES).status == 200
        assert time.monotonic() < deadline, "the request never became one that is answered inline"
    watched.threads.clear()
    watched.calls.clear()


def test_a_kind_of_request_is_answered_inline_once_the_workers_measured_it(
    client: Client, watched: WatchedService
) -> None:
    for _ in range(SAMPLES_NEEDED):
        client.ask("POST", "/predict", YES)
    assert LOOP not in watched.threads

    make_known(client, watched)
    assert client.ask("POST", "/predict", YES).json["outputs"]["scores"] == [[0.0, 12.0]]


def test_a_dear_request_is_never_answered_inline(client: Client, watched: WatchedService) -> None:
    watched.cost_s = 2 * MAX_COST_S
    for _ in range(10 * SAMPLES_NEEDED):
        client.ask("POST", "/predict", YES)

    assert LOOP not in watched.threads


def test_a_request_that_became_dear_goes_to_the_workers_from_the_next_one_on(
    client: Client, watched: WatchedService
) -> None:
    make_known(client, watched)
    watched.cost_s = 4 * MAX_COST_S
    for _ in range(5):
        client.ask("POST", "/predict", YES)

    assert watched.threads[0] == LOOP
    assert LOOP not in watched.threads[1:]


def test_a_call_that_waited_for_something_sends_its_kind_to_the_workers_at_once(
    client: Client, watched: WatchedService
) -> None:
    make_known(client, watched)
    watched.pause_s = 10 * MAX_CLOCK_S
    for _ in range(3):
        client.ask("POST", "/predict", YES)

    assert watched.threads[0] == LOOP
    assert LOOP not in watched.threads[1:]


def test_a_call_that_would_wait_is_asked_again_where_it_may(client: Client, watched: WatchedService) -> None:
    make_known(client, watched)
    watched.is_busy = True
    answer = client.ask("POST", "/predict", YES)

    assert answer.status == 200
    assert [options.may_wait for options in watched.calls] == [False, True]
    assert LOOP not in watched.threads


def test_a_model_that_is_busy_delays_no_other_connection(watched: WatchedService) -> None:
    with (
        LocalApi(service=watched, host="127.0.0.1", port=0) as api,
        Client(api.port or 0) as busy,
        Client(api.port or 0) as other,
    ):
        make_known(busy, watched)
        watched.is_busy = True
        watched.gate = threading.Event()
        running = watched.running
        busy.send(request("POST", "/predict", YES))
        wait_until(lambda: watched.running > running)

        assert other.ask("GET", "/health").status == 200
        watched.gate.set()
        assert busy.answer().status == 200


def test_a_client_that_sends_ahead_gets_a_streak_of_inline_answers_and_then_waits_its_turn(
    client: Client, watched: WatchedService
) -> None:
    make_known(client, watched)
    count = 4 * MAX_INLINE_STREAK
    client.send(request("POST", "/predict", YES) * count)

    assert {client.answer().status for _ in range(count)} == {200}
    longest = max(len(streak) for streak in "".join("i" if t == LOOP else " " for t in watched.threads).split())
    assert longest <= MAX_INLINE_STREAK
    assert LOOP in watched.threads


def test_many_calls_in_one_request_and_bodies_that_grow_are_never_answered_inline(
    client: Client, watched: WatchedService
) -> None:
    many = {"inputs": [[[1, 2, 3]]]}
    packed = gzip.compress(json.dumps(YES).encode())
    for _ in range(5 * SAMPLES_NEEDED):
        assert client.ask("POST", "/batch", many).status == 200
        client.ask("POST", "/predict", packed, Content_Encoding="gzip")

    assert watched.threads
    assert LOOP not in watched.threads


def test_a_web_page_from_elsewhere_is_refused_inline_too(client: Client, watched: WatchedService) -> None:
    make_known(client, watched)

    assert client.ask("POST", "/predict", YES, Origin="https://evil.example").status == 403
    assert not watched.threads


def test_loading_and_unloading_never_happen_inline(watched: WatchedService) -> None:
    for change in (AtOnce(watched).load_model, AtOnce(watched).unload_model):
        with pytest.raises(WouldWaitError):
            change("linear")


def test_a_call_keeps_its_options_when_it_is_asked_not_to_wait(watched: WatchedService) -> None:
    AtOnce(watched).infer("linear", {"x": [[1.0, 2.0, 3.0]]}, CallOptions(priority=7, key="k"))

    assert watched.calls == [CallOptions(priority=7, key="k", may_wait=False)]


def quick(cost_s: float = MAX_CROWDED_COST_S / 2) -> Kind:
    kind = Kind()
    for _ in range(SAMPLES_NEEDED):
        kind.learn(cost_s)
    return kind


def test_what_takes_longer_is_inline_only_while_it_is_alone() -> None:
    between = quick((MAX_CROWDED_COST_S + MAX_COST_S) / 2)

    assert between.is_quick(0.0, is_alone=True)
    assert not between.is_quick(0.0, is_alone=False)
    assert quick().is_quick(0.0, is_alone=False)


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=60))
def test_no_kind_is_quick_right_after_a_cost_above_the_limit(costs: list[float]) -> None:
    kind = Kind()
    for cost in costs:
        kind.learn(cost)

    assert not (costs[-1] > MAX_COST_S and kind.is_quick(0.0, is_alone=True))
    assert not (len(costs) < SAMPLES_NEEDED and kind.is_quick(0.0, is_alone=True))


def test_a_kind_comes_back_when_its_dear_answers_have_faded() -> None:
    kind = quick()
    kind.learn(4 * MAX_COST_S)
    needed = 0
    while not kind.is_quick(0.0, is_alone=True):
        kind.learn(MAX_CROWDED_COST_S / 2)
        needed += 1

    assert 8 < needed < 20


def test_each_surprise_soon_after_another_keeps_the_kind_away_for_twice_as_long() -> None:
    kind, now, stays = quick(), 0.0, []
    for _ in range(10):
        kind.clocked(10 * MAX_CLOCK_S, now)
        begun = now
        while not kind.is_quick(now, is_alone=True):
            now += 0.125
        stays.append(now - begun)
    now += 2 * MAX_PENALTY_S
    kind.clocked(10 * MAX_CLOCK_S, now)

    assert stays == [min(MAX_PENALTY_S, PENALTY_S * 2**n) for n in range(10)]
    assert not kind.is_quick(now, is_alone=True)
    assert kind.is_quick(now + PENALTY_S, is_alone=True)


def test_answers_that_are_always_a_little_late_are_a_surprise_too() -> None:
    kind = quick()
    for _ in range(30):
        kind.clocked(2 * MAX_CLOCK_S, 0.0)

    assert not kind.is_quick(0.5, is_alone=True)


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    kinds = Kinds()
    paths = [Request(method="POST", path=f"/v2/models/m{number}/infer") for number in range(MAX_KINDS + 1)]
    for each in paths:
        kinds.learn(each, 0.0)

    assert kinds.find(paths[0]) is None
    assert all(kinds.find(each) is not None for each in paths[1:])


def test_large_bodies_and_long_paths_are_not_remembered() -> None:
    kinds = Kinds()
    for each in (
        Request(method="POST", path="/predict", body=b" " * (MAX_BODY_BYTES + 1)),
        Request(method="GET", path="/" + "a" * 1000),
        Request(method="POST", path="/batch", body=b"{}"),
    ):
        kinds.learn(each, 0.0)
        assert kinds.find(each) is None


def test_what_a_compressed_body_costs_says_nothing_of_a_plain_one() -> None:
    kinds = Kinds()
    kinds.learn(Request(method="POST", path="/predict", body=b" ", headers={"content-encoding": "gzip"}), 0.0)

    assert kinds.find(Request(method="POST", path="/predict", body=b" ")) is None


def test_bodies_of_another_size_class_are_another_kind() -> None:
    kinds = Kinds()
    kinds.learn(Request(method="POST", path="/predict", body=b" " * 100), 0.0)

    assert kinds.find(Request(method="POST", path="/predict", body=b" " * 120)) is not None
    assert kinds.find(Request(method="POST", path="/predict", body=b" " * 1000)) is None
