"""Durable files: the old content or the new, and nothing in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_agent.durable_files import move_into_place, replace_file, sync_folder


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"", b"new" * 100_000):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_content_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("fsync folder" if target.is_dir() else f"fsync {target.stat().st_size}")
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    replace_file(tmp_path / "file", b"content")

    assert steps == ["fsync 7", "rename", "fsync folder"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"

    monkeypatch.undo()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_what_an_interrupted_write_left_behind_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of something much longer")

    replace_file(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_synced_file_is_moved_over_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")

    move_into_place(tmp_path / "a", tmp_path / "b")

    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"b": b"a"}


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")
