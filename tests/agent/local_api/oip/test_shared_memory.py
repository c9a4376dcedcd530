"""System shared memory: tensors through /dev/shm, and everything that is not one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.local_api.oip import shared_memory
from edge_agent.local_api.oip.shared_memory import MAX_REGIONS, REGIONS
from tests.agent.local_api.oip.asking import INFER, ask, ask_json, error_of, floats, split
from tests.agent.local_api.small_service import SmallService

FOLDER = Path(shared_memory.FOLDER)
pytestmark = pytest.mark.skipif(not os.access(FOLDER, os.W_OK), reason="no /dev/shm here")


@pytest.fixture
def key() -> Iterator[str]:
    """The key of a shared memory file of 64 bytes, with 1, 2, 3 at its 16th."""
    name = f"edgefleet-test-{secrets.token_hex(4)}"
    (FOLDER / name).write_bytes(b"\0" * 16 + floats(1, 2, 3) + b"\0" * 36)
    yield f"/{name}"
    REGIONS.unregister(None)
    (FOLDER / name).unlink(missing_ok=True)


def register(service: SmallService, key: str, *, name: str = "r", offset: int = 0, byte_size: int = 64) -> Any:
    body = {"key": key, "offset": offset, "byte_size": byte_size}
    return ask(service, "POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def from_region(region: str = "r", size: int = 12, offset: int = 16) -> dict[str, Any]:
    place = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}
    return {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": place}


def into_region(region: str = "r", size: int = 8, offset: int = 0, **more: object) -> dict[str, Any]:
    place = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset, **more}
    return {"name": "scores", "parameters": place}


def test_tensors_are_taken_from_and_left_in_a_region(service: SmallService, key: str) -> None:
    assert register(service, key).status == 200

    answer = ask_json(service, INFER, inputs=[from_region()], outputs=[into_region(size=20, offset=40)])

    assert answer["outputs"] == [
        {
            "name": "scores",
            "datatype": "FP32",
            "shape": [1, 2],
            "parameters": {"shared_memory_region": "r", "shared_memory_offset": 40, "shared_memory_byte_size": 8},
        }
    ]
    assert (FOLDER / key[1:]).read_bytes()[40:48] == floats(0, 12)
    assert (FOLDER / key[1:]).read_bytes()[16:28] == floats(1, 2, 3)


def test_a_region_begins_at_its_own_offset(service: SmallService, key: str) -> None:
    register(service, key, offset=16, byte_size=12)

    answer = ask_json(service, INFER, inputs=[from_region(offset=0)])

    assert answer["outputs"][0]["data"] == [0.0, 12.0]


def test_a_region_in_and_bytes_out(service: SmallService, key: str) -> None:
    register(service, key)
    message = {"inputs": [from_region()], "parameters": {"binary_data_output": True}}

    assert split(ask(service, "POST", INFER, message))[1] == floats(0, 12)


def test_regions_are_listed_and_unregistered(service: SmallService, key: str) -> None:
    for name in ("b", "a"):
        register(service, key, name=name, offset=8, byte_size=16)
    first = {"name": "a", "key": key, "offset": 8, "byte_size": 16}

    assert json.loads(ask(service, "GET", "/v2/systemsharedmemory/status").body) == [first, {**first, "name": "b"}]
    assert json.loads(ask(service, "GET", "/v2/systemsharedmemory/region/a/status").body) == [first]
    assert ask(service, "POST", "/v2/systemsharedmemory/region/a/unregister").status == 200
    assert ask(service, "POST", "/v2/systemsharedmemory/region/a/unregister").status == 200
    assert "a" in error_of(ask(service, "GET", "/v2/systemsharedmemory/region/a/status"), 404)
    assert ask(service, "POST", "/v2/systemsharedmemory/unregister").status == 200
    assert json.loads(ask(service, "GET", "/v2/systemsharedmemory/status").body) == []


@pytest.mark.parametrize(
    "key_given",
    [
        "",
        "/",
        "//",
        "..",
        "/../etc/passwd",
        "/a/b",
        ".",
        "/a\0b",
        "/" + "x" * 300,
        "/not-there-at-all",
        "/sem.x",
        "/ü/",
    ],
)
def test_a_key_is_the_name_of_a_file_in_the_folder_and_nothing_else(service: SmallService, key_given: str) -> None:
    assert error_of(register(service, key_given), 400)


def test_files_elsewhere_are_no_regions(service: SmallService, key: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret"
    elsewhere.write_bytes(b"s" * 64)
    folder = FOLDER / f"{key[1:]}-folder"
    semaphore = FOLDER / f"sem.{key[1:]}"
    folder.mkdir()
    (folder / "file").write_bytes(b"s" * 64)
    semaphore.write_bytes(b"s" * 64)
    try:
        for wrong in (f"/../..{elsewhere}", f"{FOLDER}{key}", f"/{folder.name}/file", f"/{semaphore.name}"):
            assert "NAME" in error_of(register(service, wrong), 400)
    finally:
        (folder / "file").unlink()
        folder.rmdir()
        semaphore.unlink()


def test_links_folders_and_pipes_are_no_regions(service: SmallService, key: str, tmp_path: Path) -> None:
    made = [FOLDER / f"{key[1:]}-{kind}" for kind in ("link", "folder", "pipe")]
    target = tmp_path / "secret"
    target.write_bytes(b"s" * 64)
    made[0].symlink_to(target)
    made[1].mkdir()
    os.mkfifo(made[2])
    try:
        for path in made:
            assert error_of(register(service, f"/{path.name}"), 400)
    finally:
        made[0].unlink()
        made[1].rmdir()
        made[2].unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
@pytest.mark.parametrize(("mode", "status"), [(0o600, 400), (0o644, 400), (0o666, 200)])
def test_anothers_file_is_used_only_when_its_mode_allows_it(
    service: SmallService, key: str, mode: int, status: int
) -> None:
    os.chown(FOLDER / key[1:], 54_321, 54_321)
    (FOLDER / key[1:]).chmod(mode)

    assert register(service, key).status == status


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"key": 5, "byte_size": 1},
        {"key": "/x", "byte_size": 0},
        {"key": "/x", "byte_size": -1},
        {"key": "/x", "byte_size": 1, "offset": -1},
        {"key": "/x", "byte_size": 2**63},
        b"{",
    ],
)
def test_a_registration_that_is_none_is_refused(service: SmallService, body: object) -> None:
    assert error_of(ask(service, "POST", "/v2/systemsharedmemory/region/r/register", body), 400)


def test_a_region_is_not_larger_than_its_file_nor_registered_twice(service: SmallService, key: str) -> None:
    assert "64 bytes" in error_of(register(service, key, byte_size=65), 400)
    assert error_of(register(service, key, offset=2**62, byte_size=2**62), 400)
    assert register(service, key).status == 200
    assert "already" in error_of(register(service, key), 400)


def test_regions_have_a_limit(service: SmallService, key: str) -> None:
    for number in range(MAX_REGIONS):
        assert register(service, key, name=f"r{number}").status == 200

    assert str(MAX_REGIONS) in error_of(register(service, key, name="more"), 400)
    assert error_of(register(service, key, name="x" * 300), 400)


@pytest.mark.parametrize(
    "tensor",
    [
        from_region("other"),
        from_region(size=8),
        from_region(size=16),
        from_region(offset=60),
        from_region(offset=2**62),
        {**from_region(), "data": [1, 2, 3]},
        {**from_region(), "parameters": {"shared_memory_region": "r"}},
        {**from_region(), "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": -12}},
    ],
)
def test_an_input_outside_its_region_is_refused(service: SmallService, key: str, tensor: dict[str, Any]) -> None:
    register(service, key)

    assert error_of(ask(service, "POST", INFER, {"inputs": [tensor]}), 400)
    assert service.running == 0


@pytest.mark.parametrize(
    "output",
    [into_region("other"), into_region(size=4), into_region(offset=60), into_region(binary_data=True)],
)
def test_an_output_that_does_not_fit_its_region_is_refused(
    service: SmallService, key: str, output: dict[str, Any]
) -> None:
    register(service, key)
    before = (FOLDER / key[1:]).read_bytes()

    assert error_of(ask(service, "POST", INFER, {"inputs": [from_region()], "outputs": [output]}), 400)
    assert (FOLDER / key[1:]).read_bytes() == before


def test_a_region_ends_where_it_was_registered_to_end(service: SmallService, key: str) -> None:
    register(service, key, byte_size=27)
    before = (FOLDER / key[1:]).read_bytes()

    assert "27 bytes" in error_of(ask(service, "POST", INFER, {"inputs": [from_region()]}), 400)
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    message = {"inputs": [tensor], "outputs": [into_region(offset=20)]}
    assert "27 bytes" in error_of(ask(service, "POST", INFER, message), 400)
    assert (FOLDER / key[1:]).read_bytes() == before


def test_an_owner_who_truncates_a_region_gets_an_error_and_kills_nobody(service: SmallService, key: str) -> None:
    register(service, key)
    os.truncate(FOLDER / key[1:], 0)

    assert "smaller" in error_of(ask(service, "POST", INFER, {"inputs": [from_region()]}), 400)

    os.truncate(FOLDER / key[1:], 28)
    assert ask(service, "POST", INFER, {"inputs": [from_region()]}).status == 200
    message = {"inputs": [from_region()], "outputs": [into_region(offset=40)]}
    assert "smaller" in error_of(ask(service, "POST", INFER, message), 400)
    assert (FOLDER / key[1:]).stat().st_size == 28


def test_an_unlinked_region_still_serves_and_its_descriptor_is_given_back(service: SmallService, key: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path for each is not needed
    register(service, key)
    (FOLDER / key[1:]).unlink()

    assert ask(service, "POST", INFER, {"inputs": [from_region()]}).status == 200
    REGIONS.unregister("r")
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_a_refused_registration_leaves_no_descriptor_behind(service: SmallService, key: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        register(service, key, byte_size=65)

    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/cudasharedmemory/status", 200),
        ("GET", "/v2/cudasharedmemory/region/r/status", 404),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501),
        ("POST", "/v2/cudasharedmemory/region/r/unregister", 200),
        ("POST", "/v2/cudasharedmemory/unregister", 200),
    ],
)
def test_there_is_no_cuda_memory(service: SmallService, method: str, path: str, status: int) -> None:
    assert ask(service, method, path).status == status
