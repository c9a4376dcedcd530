"""Deltas on the server: small, computed once, bounded, and gone without harm."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.control.delta import rebuild
from fleet_protocol.delta import NO_BASE, DeltaOffer
from fleet_server.errors import InvalidRequestError, NotFoundError
from fleet_server.registry import deltas as module
from fleet_server.registry.artifact_store import LocalArtifactStore, put
from fleet_server.registry.delta_alignment import align
from fleet_server.registry.delta_encoding import write_delta
from fleet_server.registry.deltas import DeltaStore, Pending
from fleet_server.registry.onnx_layout import weights_in
from tests.real_servers.processes import wait_until

RANDOM = np.random.default_rng(3)


def network(*, seed: int = 0, moved: float = 0.0, names: str = "w", layers: int = 4) -> bytes:
    """An int8 network whose weights are those of `seed`, each `moved` a little."""
    random, further = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    weights = [random.normal(0, 30, size=(64, 64)) for _ in range(layers)]
    made = [
        numpy_helper.from_array(
            np.clip(np.round(weight + further.normal(0, 1, weight.shape) * moved), -127, 127).astype(np.int8),
            f"{names}{place}",
        )
        for place, weight in enumerate(weights)
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name=f"{names}-node")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializer=made,
    )
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


def delta_of(base: bytes, new: bytes) -> bytes:
    made = bytearray()
    write_delta(memoryview(base), memoryview(new), max_bytes=10**9, write=made.extend)
    return bytes(made)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_weights_of_a_file_are_found_where_they_lie() -> None:
    content = network()

    for weights, initializer in zip(weights_in(content), onnx.load_from_string(content).graph.initializer, strict=True):
        assert weights.name.decode() == initializer.name
        assert content[weights.offset : weights.offset + weights.length] == initializer.raw_data


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", network()[:-1], network()[:5000], b"\xff" * 100])
def test_what_is_no_onnx_file_has_no_weights(content: bytes) -> None:
    assert weights_in(content) == []


def test_an_unchanged_file_is_one_segment() -> None:
    content = memoryview(network())

    assert align(content, content) == [(0, len(content))]


def test_weights_that_moved_a_little_cost_the_little_they_moved() -> None:
    old, new = network(), network(moved=0.3)

    assert len(delta_of(old, new)) < 0.25 * len(new)
    assert len(delta_of(old, network())) < 0.02 * len(new)


def test_renamed_and_shifted_weights_are_still_recognised() -> None:
    old, new = network(), network(moved=0.3, names="a-much-longer-name")

    assert len(delta_of(old, new)) < 0.27 * len(new)


def test_weights_that_have_nothing_to_do_with_the_base_stand_without_it() -> None:
    old, new = network(), network(seed=5)

    assert any(offset == NO_BASE and length > 4000 for offset, length in align(memoryview(old), memoryview(new)))
    assert len(delta_of(old, new)) < len(new)


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path / "artifacts")


@contextmanager
def opened(folder: Path, artifacts: LocalArtifactStore, *, max_bytes: int = 10**9) -> Iterator[DeltaStore]:
    store = DeltaStore(folder / "deltas", artifacts, max_bytes=max_bytes)
    try:
        yield store
    finally:
        store.close()


def stored(artifacts: LocalArtifactStore, content: bytes) -> str:
    put(artifacts, digest_of(content), [content])
    return digest_of(content)


def settled(store: DeltaStore, new: str, base: str) -> DeltaOffer | None:
    """The answer once it is computed."""
    found: list[DeltaOffer | None] = []

    def known() -> bool:
        answer = store.offer(new, base)
        if not isinstance(answer, Pending):
            found.append(answer)
        return bool(found)

    wait_until(known, 20, "the delta is computed")
    return found[0]


def test_a_delta_is_offered_once_it_is_computed_and_makes_the_file(
    tmp_path: Path, artifacts: LocalArtifactStore
) -> None:
    old, new = network(), network(moved=0.3)
    base, target = stored(artifacts, old), stored(artifacts, new)
    with opened(tmp_path, artifacts) as store:
        assert store.offer(target, base) is Pending.PENDING
        offer = settled(store, target, base)

        assert offer is not None
        with store.open(offer.delta) as file:
            delta = file.read()
        assert (len(delta), digest_of(delta)) == (offer.size_bytes, offer.delta)
        assert store.size_bytes(offer.delta) == offer.size_bytes
        assert store.counters()["edgefleet_deltas_made_total"] == 1
    for name, content in {"delta": delta, "base": old}.items():
        (tmp_path / name).write_bytes(content)
    rebuild(tmp_path / "delta", tmp_path / "base", tmp_path / "out", size_bytes=len(new), base_size_bytes=len(old))
    assert (tmp_path / "out").read_bytes() == new


def test_a_delta_that_saves_little_is_never_offered(tmp_path: Path, artifacts: LocalArtifactStore) -> None:
    base, target = stored(artifacts, RANDOM.bytes(20_000)), stored(artifacts, RANDOM.bytes(20_000))
    with opened(tmp_path, artifacts) as store:
        assert settled(store, target, base) is None
        assert store.offer(target, base) is None
        assert store.counters() == {"edgefleet_deltas_made_total": 0, "edgefleet_deltas_not_worth_it_total": 1}


def test_what_was_computed_outlives_a_restart(tmp_path: Path, artifacts: LocalArtifactStore) -> None:
    base, target = stored(artifacts, network()), stored(artifacts, network(moved=0.3))
    with opened(tmp_path, artifacts) as store:
        before = settled(store, target, base)
    with opened(tmp_path, artifacts) as store:
        assert store.offer(target, base) == before
        assert store.counters()["edgefleet_deltas_made_total"] == 0


def test_a_thousand_devices_that_ask_together_cost_one_delta(tmp_path: Path, artifacts: LocalArtifactStore) -> None:
    base, target = stored(artifacts, network()), stored(artifacts, network(moved=0.3))
    with opened(tmp_path, artifacts) as store:
        asking = [threading.Thread(target=lambda: [store.offer(target, base) for _ in range(100)]) for _ in range(10)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()

        assert settled(store, target, base) is not None
        assert store.counters()["edgefleet_deltas_made_total"] == 1


def test_the_longest_unused_deltas_are_removed_beyond_the_bound_and_can_be_made_again(
    tmp_path: Path, artifacts: LocalArtifactStore
) -> None:
    base = stored(artifacts, network())
    targets = [stored(artifacts, network(moved=0.3 + place / 100)) for place in range(4)]
    with opened(tmp_path, artifacts) as store:
        sizes = [offer.size_bytes for target in targets if (offer := settled(store, target, base))]
    (tmp_path / "deltas").rename(tmp_path / "away")
    with opened(tmp_path, artifacts, max_bytes=sizes[0] + sizes[2] + sizes[1] // 2) as store:
        first = settled(store, targets[0], base)
        second = settled(store, targets[1], base)
        assert first is not None
        assert second is not None
        wait_until(lambda: store.offer(targets[0], base) == first, 5, "the first is used again")
        assert settled(store, targets[2], base) is not None

        assert store.size_bytes(first.delta) == first.size_bytes
        assert store.size_bytes(second.delta) is None
        with pytest.raises(NotFoundError):
            store.open(second.delta)
        assert settled(store, targets[1], base) == second


class SlowArtifacts(LocalArtifactStore):
    """A store that gives out no file before it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may = threading.Event()

    def open(self, sha256: str) -> BufferedReader:
        self.may.wait(20)
        return super().open(sha256)


def test_no_more_pairs_wait_than_the_queue_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    slow = SlowArtifacts(tmp_path / "artifacts")
    base = stored(slow, network())
    targets = [stored(slow, network(moved=0.3 + place / 100)) for place in range(5)]
    with opened(tmp_path, slow) as store:
        answers = [store.offer(target, base) for target in targets]
        assert answers == [Pending.PENDING] * 3 + [None] * 2
        slow.may.set()
        assert settled(store, targets[2], base) is not None
        assert settled(store, targets[4], base) is not None


def test_closing_gives_up_what_is_being_computed(tmp_path: Path) -> None:
    slow = SlowArtifacts(tmp_path / "artifacts")
    base, target = stored(slow, network()), stored(slow, network(moved=0.3))
    store = DeltaStore(tmp_path / "deltas", slow, max_bytes=10**9)
    store.offer(target, base)
    closing = threading.Thread(target=store.close)
    closing.start()
    wait_until(store._stopping.is_set, 5, "it is being closed")
    slow.may.set()
    started = time.monotonic()
    closing.join(10)

    assert time.monotonic() - started < 5
    assert not list((tmp_path / "deltas").rglob("*.tmp"))
    assert store.offer(target, base) is None


def test_unknown_files_and_names_that_are_none_are_refused(tmp_path: Path, artifacts: LocalArtifactStore) -> None:
    known = stored(artifacts, network())
    with opened(tmp_path, artifacts) as store:
        for new, base in ((known, "0" * 64), ("0" * 64, known)):
            with pytest.raises(NotFoundError):
                store.offer(new, base)
        with pytest.raises(InvalidRequestError):
            store.offer("../../etc/passwd", known)


def test_a_file_too_large_for_a_delta_is_sent_whole(
    tmp_path: Path, artifacts: LocalArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    base, target = stored(artifacts, network()), stored(artifacts, network(moved=0.3))
    with opened(tmp_path, artifacts) as store:
        assert store.offer(target, base) is None
