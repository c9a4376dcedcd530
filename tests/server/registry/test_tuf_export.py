"""An exported TUF repository is one that TUF's own client accepts, and what it must refuse, it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PrivateKey
from fleet_server.registry.tuf_export import Signers, export_tuf
from tests.server.api.running import Bundle, make_bundle

ngclient = pytest.importorskip("tuf.ngclient")
exceptions = pytest.importorskip("tuf.api.exceptions")

ROOT, RELEASE, SECOND, DIRECTOR = (PrivateKey(bytes([number]) * 32) for number in range(41, 45))
SIGNERS = Signers(root=[ROOT], release=[RELEASE, SECOND], director=DIRECTOR)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(tmp_path / "repository")))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def export(folder: Path, *bundles: Bundle, timestamp_days: int = 7, signers: Signers = SIGNERS) -> int:
    folders = [bundle.folder for bundle in bundles]
    days = {"root_days": 365, "targets_days": 90, "timestamp_days": timestamp_days}
    return export_tuf(folders, folder / "repository", signers=signers, **days)


def fetch(folder: Path, url: str, name: str) -> bytes:
    """The target as TUF's client delivers it to a device that pinned root 1."""
    client = folder / "client"
    (client / "targets").mkdir(parents=True, exist_ok=True)
    pinned = (folder / "repository" / "metadata" / "1.root.json").read_bytes()
    updater = ngclient.Updater(
        str(client / "metadata"), f"{url}/metadata/", str(client / "targets"), f"{url}/targets/", bootstrap=pinned
    )
    info = updater.get_targetinfo(name)
    assert info is not None, f"no target {name}"
    return Path(updater.download_target(info)).read_bytes()


def test_tufs_own_client_fetches_a_bundle_and_the_next_one(tmp_path: Path, url: str) -> None:
    one = make_bundle(tmp_path / "one", [RELEASE, SECOND])
    assert export(tmp_path, one) == 1
    assert fetch(tmp_path, url, "digits/1.0.0/bundle.dsse.json") == one.envelope
    for artifact in one.manifest.artifacts():
        assert fetch(tmp_path, url, f"files/{artifact.sha256}") == one.file(artifact.sha256)
    two = make_bundle(tmp_path / "two", [RELEASE, SECOND], version="1.1.0", content=b"other weights")
    assert export(tmp_path, two) == 2
    assert fetch(tmp_path, url, "digits/1.1.0/bundle.dsse.json") == two.envelope
    assert fetch(tmp_path, url, "digits/1.0.0/bundle.dsse.json") == one.envelope


def test_a_frozen_repository_and_one_by_a_stolen_director_key_are_refused(tmp_path: Path, url: str) -> None:
    one = make_bundle(tmp_path / "one", [RELEASE, SECOND])
    export(tmp_path, one, timestamp_days=-1)
    with pytest.raises(exceptions.ExpiredMetadataError):
        fetch(tmp_path, url, "digits/1.0.0/bundle.dsse.json")
    thief = Signers(root=[ROOT], release=[PrivateKey.generate()], director=DIRECTOR)
    export(tmp_path, make_bundle(tmp_path / "two", list(thief.release), version="1.1.0"), signers=thief)
    with pytest.raises(exceptions.UnsignedMetadataError):
        fetch(tmp_path, url, "digits/1.1.0/bundle.dsse.json")


def test_a_bundle_that_is_not_released_or_was_changed_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="1 valid"):
        export(tmp_path, make_bundle(tmp_path / "one", [RELEASE]))
    two = make_bundle(tmp_path / "two", [RELEASE, SECOND])
    (two.folder / "files" / two.manifest.golden.sha256).write_bytes(b"changed")
    with pytest.raises(ProtocolError, match="was changed"):
        export(tmp_path, two)
    assert not (tmp_path / "repository").exists()
