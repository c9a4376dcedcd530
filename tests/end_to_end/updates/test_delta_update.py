"""An update by delta: a real server computes it, the link is cut within it, a real device rebuilds the file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from fleet_protocol.bundle_folder import add_file, file_path, read_manifest, write_manifest
from tests.end_to_end.fleet import MODEL, ROOT, Device, Fleet, eventually
from tests.real_servers.relay import Relay

_WAIT_S = 60.0
_FIRST, _NEXT = "1.0.0", "1.0.1"
_POLICY: dict[str, Any] = {
    "stages": [{"percent": 100, "bake_s": 0.2}],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 120,
    "probation": {"duration_s": 0.2, "min_inferences": 5, "max_p95_latency_ratio": 1000.0},
    "gates": [{"gate": "update_failures", "max_share": 0.0}],
}
_LINK_BYTES_PER_S = 10_000


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """The bundle of 1.0.0 with every float moved by less than its golden vectors notice."""
    folder = tmp_path / "made" / _NEXT
    shutil.copytree(ROOT / "models" / MODEL / "bundles" / _FIRST, folder)
    manifest = read_manifest(folder)
    variants = []
    for variant in manifest.variants:
        model = onnx.load(str(file_path(folder, variant.file.sha256)))
        for one in model.graph.initializer:
            if one.data_type == onnx.TensorProto.FLOAT and one.dims:
                moved = numpy_helper.to_array(one) * np.float32(1 + 2**-20)
                one.CopyFrom(numpy_helper.from_array(moved, one.name))
        variants.append(replace(variant, file=add_file(folder, model.SerializeToString())))
    write_manifest(folder, replace(manifest, version=_NEXT, variants=variants))
    return folder


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as running:
        yield running


def _runs(fleet: Fleet, device: Device, version: str) -> bool:
    report = fleet.reported(device.name) or {}
    return (report.get("version"), report.get("phase")) == (version, "HEALTHY")


def test_a_device_is_updated_by_a_delta_whose_download_is_cut(fleet: Fleet, fine_tuned: Path) -> None:
    with Relay(fleet.http_port) as link:
        settings = {
            "server": {"url": f"http://127.0.0.1:{link.port}"},
            "update": {"backoff_max_s": 0.1, "max_bytes_per_s": _LINK_BYTES_PER_S * 50},
        }
        device = fleet.add_device("press-1", from_fleet=True, settings=settings)
        fleet.publish(_FIRST)
        first = fleet.roll_out(_FIRST, _POLICY)
        eventually(lambda: fleet.rollout(first)["state"] == "COMPLETED", _WAIT_S, "1.0.0 is rolled out")
        fleet.publish(_NEXT, fine_tuned)
        link.throttle(_LINK_BYTES_PER_S)

        fleet.roll_out(_NEXT, _POLICY)
        partial_of_a_delta = _cut_within_a_delta(device, link, fine_tuned)
        link.throttle(None)
        eventually(lambda: _runs(fleet, device, _NEXT), _WAIT_S, "1.0.1 is healthy")

    saved = [int(found) for found in re.findall(r"rebuilt from a delta of \d+ bytes, (\d+) bytes saved", device.log())]
    report = fleet.reported(device.name) or {}
    manifest = read_manifest(fine_tuned)
    [runs] = [variant for variant in manifest.variants if variant.name == report["variant"]]
    kept = {path.name for path in (device.data_dir / "bundles").iterdir()}
    assert sum(saved) > 0.5 * runs.file.size_bytes
    assert runs.file.sha256 in kept
    assert partial_of_a_delta not in kept
    assert "the whole file is fetched" not in device.log()
    assert fleet.metrics()["edgefleet_deltas_made_total"] >= 1


def _cut_within_a_delta(device: Device, link: Relay, bundle: Path) -> str:
    """Cut every connection while a delta is partly there; the partial file's name."""
    manifest = read_manifest(bundle)
    known = {f"{artifact.sha256}.partial" for artifact in manifest.artifacts()}

    def growing() -> str:
        for path in (device.data_dir / "bundles").glob("*.partial"):
            if path.name not in known and path.stat().st_size:
                return path.name
        return ""

    name = eventually(growing, _WAIT_S, "a delta is on its way")
    link.drop_connections()
    return name
