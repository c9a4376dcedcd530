"""The outbox on disks that are damaged, full, forbidden or somebody else's."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.errors import ConfigError
from tests.agent.telemetry.windows import append, open_outbox, waiting
from tests.real_servers.requirements import missing


def test_a_file_that_is_no_database_is_set_aside_and_a_new_outbox_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"not a database, whatever its name says" * 100)

    outbox = open_outbox(path)
    append(outbox)
    outbox.close()

    [aside] = tmp_path.glob("outbox.db.unreadable-*")
    assert aside.read_bytes().startswith(b"not a database")
    assert "unreadable" in caplog.text


def test_a_database_whose_pages_are_damaged_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = open_outbox(path)
    for _ in range(200):
        append(outbox)
    outbox.close()
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 4096] = b"\xa5" * (len(content) - 12_288)
    path.write_bytes(content)

    outbox = open_outbox(path)
    append(outbox)

    assert outbox.status().depth == 1
    assert len(list(tmp_path.glob("outbox.db.unreadable-*"))) == 1
    outbox.close()


def test_a_file_in_use_by_another_process_is_an_error_and_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outbox.db"
    open_outbox(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")

    with pytest.raises(ConfigError, match="cannot be opened"):
        open_outbox(path)
    other.execute("ROLLBACK")
    other.close()
    assert list(tmp_path.glob("*unreadable*")) == []


def test_a_data_folder_that_is_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    with pytest.raises(OSError, match="data"):
        open_outbox(tmp_path / "data" / "outbox.db")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB of this test's own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        missing("a small file system", f"mount -t tmpfs needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65_536, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_full_disk_loses_only_new_records_counts_them_and_recovers(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    outbox = open_outbox(small_disk / "outbox.db")
    append(outbox)
    filler = fill(small_disk)
    for _ in range(100):  # what is left in the files' last pages is used up first
        append(outbox, features={"f": b"\x00\x01" * 500})
    lost = outbox.status().dropped
    assert lost > 0
    assert "dropped" in caplog.text

    filler.unlink()
    append(outbox)
    depth = outbox.status().depth
    outbox.close()
    again = open_outbox(small_disk / "outbox.db")

    assert again.status().dropped == lost
    assert again.status().depth == depth == 102 - lost
    assert [one.sequence for one in waiting(again)][-1] == 102
    again.close()


def test_an_agent_starts_on_a_disk_that_was_full_when_it_ended_or_says_why_not(small_disk: Path) -> None:
    outbox = open_outbox(small_disk / "outbox.db")
    append(outbox)
    outbox.close()
    filler = fill(small_disk)

    try:
        full = open_outbox(small_disk / "outbox.db")
    except ConfigError as error:
        assert "disk not full" in str(error)
    else:
        assert full.boot_id.startswith("00000002-")
        full.close()
    assert list(small_disk.glob("*unreadable*")) == []

    filler.unlink()
    again = open_outbox(small_disk / "outbox.db")
    assert again.status().depth == 1
    again.close()
