"""The artifact store keeps whole files under their own digests, whatever happens during an upload."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fleet_server.errors import InvalidRequestError, NotFoundError, UnavailableError, UntrustedBundleError
from fleet_server.registry.artifact_store import ABANDONED_AFTER_S, LocalArtifactStore, put
from tests.real_servers.processes import wait_until

_CONTENT = b"weights" * 1000
_DIGEST = hashlib.sha256(_CONTENT).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_stored_file_is_read_back(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    assert store.size_bytes(_DIGEST) is None
    assert put(store, _DIGEST, [_CONTENT[:10], _CONTENT[10:]]) == len(_CONTENT)
    assert put(store, _DIGEST, [_CONTENT]) == len(_CONTENT)
    assert store.size_bytes(_DIGEST) == len(_CONTENT)
    with LocalArtifactStore(tmp_path).open(_DIGEST) as file:
        assert file.read() == _CONTENT
    assert len(_files(tmp_path)) == 1


def test_bytes_of_another_digest_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UntrustedBundleError, match="nothing was stored"):
        put(LocalArtifactStore(tmp_path), _DIGEST, [_CONTENT, b"!"])
    assert _files(tmp_path) == []


def test_an_upload_past_its_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="limit of 100 bytes"):
        put(LocalArtifactStore(tmp_path), _DIGEST, [b"x" * 60, b"x" * 60], max_bytes=100)
    assert _files(tmp_path) == []


def test_an_upload_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), LocalArtifactStore(tmp_path).receive(_DIGEST) as writer:
        writer.write(_CONTENT)
        assert len(_files(tmp_path)) == 1
        raise RuntimeError
    assert _files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/x", "0" * 64 + "\n", "\0"])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    store = LocalArtifactStore(tmp_path)
    for use in (store.receive, store.open, store.size_bytes):
        with pytest.raises(InvalidRequestError):
            use(name)


def test_an_unknown_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        LocalArtifactStore(tmp_path).open("0" * 64)


def test_uploads_of_one_file_at_once_end_in_one_file(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path)
    threads = [threading.Thread(target=put, args=(store, _DIGEST, [_CONTENT])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [path.name for path in _files(tmp_path)] == [_DIGEST]


def test_a_process_killed_in_the_middle_of_an_upload_leaves_no_file_under_the_digest(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fleet_server.registry.artifact_store import *\n"
        "with LocalArtifactStore(Path(sys.argv[1])).receive(sys.argv[2]) as writer:\n"
        "    writer.write(b'x' * 1000000); print('written', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), _DIGEST], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    store = LocalArtifactStore(tmp_path)
    assert store.size_bytes(_DIGEST) is None
    [torn] = _files(tmp_path)
    old = time.time() - ABANDONED_AFTER_S - 1
    os.utime(torn, (old, old))
    LocalArtifactStore(tmp_path)
    wait_until(lambda: _files(tmp_path) == [], 5, "the torn upload to be removed")


def test_a_folder_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="artifact folder"):
        LocalArtifactStore(tmp_path / "file")
