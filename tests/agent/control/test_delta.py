"""Updates by delta: the right file or none, whatever the delta is."""

from __future__ import annotations

import hashlib
import logging
import lzma
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.delta import rebuild
from edge_agent.control.download import Downloader, DownloadStopped
from edge_agent.control.fetching import fetch_bundle
from edge_agent.errors import ArtifactCorruptError, BundleRefusedError, DownloadError
from fleet_protocol.delta import DELTA_MAGIC, NO_BASE, DeltaHeader, DeltaOffer, encode_header
from fleet_protocol.manifest import Artifact, Variant
from fleet_server.registry.delta_encoding import write_delta
from tests.agent.control.bundles import SmallBundle, artifact, bundle, store_in
from tests.agent.control.files_server import FilesServer

OLD = np.random.default_rng(1).bytes(60_000)
NEW = OLD[:20_000] + bytes(100) + OLD[20_100:]


def delta_of(base: bytes, new: bytes) -> bytes:
    """As the server makes it."""
    made = bytearray()
    write_delta(memoryview(base), memoryview(new), max_bytes=10**9, write=made.extend)
    return bytes(made)


def forged(header: DeltaHeader, residual: bytes, *, dictionary_bytes: int = 65536) -> bytes:
    """A delta that says what it is told to."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": dictionary_bytes}]
    return DELTA_MAGIC + lzma.compress(encode_header(header) + residual, filters=filters)


def rebuilt(folder: Path, delta: bytes, *, base: bytes = OLD, size_bytes: int = len(NEW)) -> bytes:
    for name, content in {"delta": delta, "base": base}.items():
        (folder / name).write_bytes(content)
    rebuild(folder / "delta", folder / "base", folder / "out", size_bytes=size_bytes, base_size_bytes=len(base))
    return (folder / "out").read_bytes()


@settings(max_examples=40)
@given(
    base=st.binary(max_size=3000),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 200), st.binary(max_size=200)), max_size=5),
)
def test_every_file_is_rebuilt_from_every_other(
    tmp_path_factory: pytest.TempPathFactory, base: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    new = base
    for place, gone, added in edits:
        new = new[:place] + added + new[place + gone :]

    found = rebuilt(tmp_path_factory.mktemp("rebuilt"), delta_of(base, new), base=base, size_bytes=len(new))

    assert found == new


_WHOLE = DeltaHeader(base_size_bytes=len(OLD), size_bytes=len(NEW), segments=((0, len(NEW)),))


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        (b"", "does not begin as a delta"),
        (b"not a delta at all", "does not begin as a delta"),
        (DELTA_MAGIC, "cut off"),
        (DELTA_MAGIC + b"not xz either", "not rebuild"),
        (delta_of(OLD, NEW)[:-20], "cut off"),
        (delta_of(OLD, NEW)[:100] + b"\xff" * 40 + delta_of(OLD, NEW)[140:], "not rebuild"),
        (DELTA_MAGIC + lzma.compress(b"\xff\xff\xff\xff", preset=0), "header has 4294967295 bytes"),
        (DELTA_MAGIC + lzma.compress(b"\x04\0\0\0nope", preset=0), "not a delta's header"),
        (forged(_WHOLE, NEW[:-1]), "ends early"),
        (forged(_WHOLE, NEW + b"!"), "more bytes than promised"),
        (forged(replace(_WHOLE, size_bytes=10**9, segments=((NO_BASE, 10**9),)), b""), "makes 1000000000 bytes"),
        (forged(replace(_WHOLE, base_size_bytes=7), NEW), "of 7, not"),
        (forged(replace(_WHOLE, segments=((0, 5),)), NEW), "do not make up the file"),
        (forged(replace(_WHOLE, segments=((1, len(NEW)),)), NEW), "beyond its base"),
        (forged(_WHOLE, NEW, dictionary_bytes=64 * 1024 * 1024), "Memory usage limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_delta_makes_nothing(tmp_path: Path, delta: bytes, says: str) -> None:
    with pytest.raises(ArtifactCorruptError, match=says):
        rebuilt(tmp_path, delta)
    assert not (tmp_path / "out").exists()


def test_a_decompression_bomb_costs_neither_memory_nor_disk(tmp_path: Path) -> None:
    bomb = DELTA_MAGIC + lzma.compress(encode_header(_WHOLE) + NEW + bytes(60_000_000), preset=0)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactCorruptError, match="more bytes than promised"):
            rebuilt(tmp_path, bomb)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_a_base_that_shrank_on_the_disk_is_told(tmp_path: Path) -> None:
    for name, content in {"delta": delta_of(OLD, NEW), "base": OLD[:-1]}.items():
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ArtifactCorruptError, match="shorter"):
        rebuild(tmp_path / "delta", tmp_path / "base", tmp_path / "out", size_bytes=len(NEW), base_size_bytes=len(OLD))


class Scene:
    """A device that holds 1.0.0 of a model, a server that has 1.1.0 and a delta of its file."""

    def __init__(self, folder: Path, server: FilesServer) -> None:
        self.server, self.folder = server, folder
        self.old = self._bundle("1.0.0", OLD)
        self.new = self._bundle("1.1.0", NEW)
        self.store: BundleStore = store_in(folder / "store")
        self.old.put_into(self.store)
        self.delta = delta_of(OLD, NEW)
        server.answers = {name: (200, content) for name, content in self.new.files.items()}
        server.answers[self.new.digest] = (200, self.new.envelope)
        self.offer(self.delta)
        self.downloader = self.new_downloader()

    def _bundle(self, version: str, content: bytes) -> SmallBundle:
        variant = Variant(
            name="fp32", file=artifact(content, self.folder), opset=17, quantization="none", golden_tolerance=0.1
        )
        made = bundle(self.folder / "made", version=version, variants=[variant])
        made.files[variant.file.sha256] = content
        return made

    def new_downloader(self, wait: Callable[[float], bool] = lambda seconds: False, **options: Any) -> Downloader:
        return Downloader(
            base_url=self.server.url,
            username="d",
            password="",
            attempts=3,
            backoff_max_s=0.01,
            wait=wait,
            **options,
        )

    @property
    def target(self) -> Artifact:
        return self.new.manifest.variants[0].file

    @property
    def question(self) -> str:
        return f"{self.target.sha256}/deltas/{self.old.manifest.variants[0].file.sha256}"

    def offer(self, delta: bytes, *, size_bytes: int | None = None) -> str:
        """Let the server offer these bytes; their digest."""
        digest = hashlib.sha256(delta).hexdigest()
        offered = DeltaOffer(delta=digest, size_bytes=len(delta) if size_bytes is None else size_bytes)
        self.server.answers |= {digest: (200, delta), self.question: (200, msgspec.json.encode(offered))}
        return digest

    def fetch(self) -> None:
        fetch_bundle(self.new.assignment, store=self.store, downloader=self.downloader)

    def was_sent_whole(self) -> bool:
        return self.target.sha256 in self.server.requests

    def assert_complete(self) -> None:
        """The file is right, and nothing of the delta is left."""
        assert self.store.verified_file(self.target).read_bytes() == NEW
        held = {self.old.digest, self.new.digest, *self.old.files, *self.new.files}
        assert {path.name for path in (self.folder / "store").iterdir()} <= held


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with FilesServer() as server:
        yield Scene(tmp_path, server)


def test_an_update_fetches_what_changed_and_says_what_it_saved(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        scene.fetch()

    scene.assert_complete()
    assert not scene.was_sent_whole()
    assert scene.downloader.received_bytes < 5000
    saved = len(NEW) - len(scene.delta)
    assert f"{len(NEW)} bytes rebuilt from a delta of {len(scene.delta)} bytes, {saved} bytes saved" in caplog.text


def test_a_cut_delta_is_resumed(scene: Scene) -> None:
    digest = scene.offer(scene.delta)
    scene.server.cut_once_after[digest] = 70

    scene.fetch()

    scene.assert_complete()
    assert scene.server.requests.count(digest) == 2
    assert not scene.was_sent_whole()


def test_a_delta_that_a_stop_interrupted_goes_on_after_a_restart(scene: Scene) -> None:
    digest = scene.offer(scene.delta)
    begun = scene.store.partial_path(digest)
    scene.server.cut_once_after[digest] = 70
    scene.downloader = scene.new_downloader(lambda seconds: begun.exists())
    with pytest.raises(DownloadStopped):
        scene.fetch()
    assert 0 < begun.stat().st_size <= 70

    scene.downloader = scene.new_downloader()
    scene.fetch()

    scene.assert_complete()
    assert not scene.was_sent_whole()


def test_a_device_without_any_other_bundle_asks_for_no_delta(scene: Scene) -> None:
    scene.store.collect_garbage({})

    scene.fetch()

    assert scene.question not in scene.server.requests
    assert scene.was_sent_whole()


def test_deltas_can_be_switched_off(scene: Scene) -> None:
    scene.downloader = scene.new_downloader(deltas=False)

    scene.fetch()

    assert scene.question not in scene.server.requests
    scene.assert_complete()


def test_a_server_that_knows_no_deltas_sends_the_whole_file(scene: Scene) -> None:
    del scene.server.answers[scene.question]

    scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()


def test_a_device_waits_for_a_delta_that_is_being_computed_but_not_for_ever(scene: Scene) -> None:
    scene.server.answers[scene.question] = (202, b"")
    waited: list[float] = []
    scene.downloader = scene.new_downloader(lambda seconds: bool(waited.append(seconds)))  # type: ignore[func-returns-value]

    scene.fetch()

    scene.assert_complete()
    assert scene.server.requests.count(scene.question) == 20
    assert len([seconds for seconds in waited if seconds]) == 20


@pytest.mark.parametrize(
    "delta",
    [b"nonsense", delta_of(OLD, NEW)[:-9], delta_of(OLD, OLD[::-1][: len(NEW)]), delta_of(b"", NEW)[: len(NEW) - 1]],
    ids=["nonsense", "cut", "of another file", "cut and of nothing"],
)
def test_whatever_is_wrong_with_a_delta_the_whole_file_is_fetched_and_one_line_says_why(
    scene: Scene, delta: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    scene.offer(delta[: len(NEW) - 1])

    with caplog.at_level(logging.WARNING):
        scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()
    assert len(caplog.records) == 1
    assert "the whole file is fetched" in caplog.text


def test_a_delta_of_another_digest_than_offered_is_not_used(scene: Scene) -> None:
    digest = scene.offer(scene.delta)
    scene.server.answers[digest] = (200, scene.delta[:-1] + b"!")

    scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()


def test_a_delta_that_is_gone_is_not_asked_for_again(scene: Scene) -> None:
    digest = scene.offer(scene.delta)
    del scene.server.answers[digest]

    scene.fetch()

    scene.assert_complete()
    assert scene.server.requests.count(digest) == 1


def test_a_delta_that_is_not_smaller_is_not_fetched(scene: Scene) -> None:
    digest = scene.offer(scene.delta, size_bytes=len(NEW))

    scene.fetch()

    assert digest not in scene.server.requests
    scene.assert_complete()


def test_less_than_a_delta_is_left_of_a_download_so_it_goes_on(scene: Scene) -> None:
    scene.store.partial_path(scene.target.sha256).write_bytes(NEW[:-10])

    scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()


def test_a_damaged_base_ends_in_the_right_file(scene: Scene) -> None:
    base = scene.store.path(scene.old.manifest.variants[0].file.sha256)
    base.write_bytes(OLD[:-1] + b"!")

    scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()


@pytest.mark.parametrize("answer", [b"", b"{}", b"[" * 4096, b'{"delta":"../../etc","size_bytes":1}'])
def test_an_offer_that_is_none_ends_in_the_whole_file(scene: Scene, answer: bytes) -> None:
    scene.server.answers[scene.question] = (200, answer)

    scene.fetch()

    scene.assert_complete()
    assert scene.was_sent_whole()


def test_a_server_that_goes_away_with_the_question_is_a_download_error(scene: Scene) -> None:
    scene.store.partial_path(scene.new.digest).write_bytes(scene.new.envelope)
    scene.store.adopt(scene.new.digest)
    scene.downloader = Downloader(
        base_url="http://127.0.0.1:1", username="d", password="", attempts=2, backoff_max_s=0.01, wait=lambda _: False
    )

    with pytest.raises(DownloadError, match="gave up after 2 attempts"):
        scene.fetch()


def test_a_disk_with_room_for_the_file_but_not_for_the_delta_too_takes_the_file(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def room_for_the_file_alone(needed_bytes: int) -> None:
        asked.append(needed_bytes)
        if needed_bytes > len(NEW):
            raise BundleRefusedError("no space")

    monkeypatch.setattr(scene.store, "require_space", room_for_the_file_alone)

    scene.fetch()

    scene.assert_complete()
    assert asked == [0, len(NEW), len(NEW) + len(scene.delta)]
    assert scene.was_sent_whole()


def test_what_came_before_a_restart_is_not_asked_room_for_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.downloader = scene.new_downloader(deltas=False)
    scene.store.partial_path(scene.target.sha256).write_bytes(NEW[:-10])
    asked: list[int] = []
    monkeypatch.setattr(scene.store, "require_space", asked.append)

    scene.fetch()

    assert asked == [0, 10]
