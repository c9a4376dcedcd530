"""Q5: how much of a bundle does a device download whose kind of CPU the fleet knows already.

A real fleet: server, broker and two devices, each a process; the digits model's bundle as the search makes it in this
run, but with every variant offered to every architecture, so that there are several to choose from on one CPU. The
rollout reaches one device, which knows nothing, downloads every candidate and reports what it measured. Then the other
of the same kind is reached, with a hint. Bytes are counted at the server's artifact endpoint, by device and file. The
ratio is the second device's bytes of variants over the size of the one that it chose: 1 is that variant once and
nothing else. The first must have downloaded all candidates, or there was nothing to save.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from msgspec.structs import replace

from benchmarks.quantization.artifact_counter import ArtifactCounter
from benchmarks.quantization.bundles import fresh_bundle_of, new_folder, say
from benchmarks.result import Result
from edge_agent.control.candidates import candidates_for
from fleet_protocol.bundle_folder import read_manifest, write_manifest
from fleet_protocol.manifest import Manifest
from tests.end_to_end.fleet import Fleet, eventually

ID = "Q5"
TITLE = "bytes of variants downloaded by a device of a known CPU / size of the variant it runs"
TARGET = 1.0
MODEL = "digits"
DEVICES = ("first", "second")
_TIMEOUT_S = 180.0
_POLICY: dict[str, Any] = {
    "stages": [{"percent": 50, "bake_s": 1.0}, {"percent": 100, "bake_s": 1.0}],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 120,
    "probation": {"duration_s": 1.0, "min_inferences": 10, "max_p95_latency_ratio": 1000.0},
    "gates": [{"gate": "update_failures", "max_share": 0.0}],
}


@dataclass(frozen=True, kw_only=True)
class Download:
    """What one device received, in bytes by digest, and the variant that it runs."""

    received: Mapping[str, int]
    variant: str


def run() -> Result:
    """Roll out to one, then to the other, and count."""
    bundle = offered_to_all(fresh_bundle_of(MODEL).folder, new_folder("q5"))
    manifest = read_manifest(bundle)
    broker: Literal["mosquitto", "embedded"] = "mosquitto" if shutil.which("mosquitto") else "embedded"
    with (
        TemporaryDirectory(prefix="edgefleet-q5-") as folder,
        Fleet(Path(folder), broker=broker) as fleet,
        ArtifactCounter(fleet.url) as counter,
    ):
        for device in DEVICES:
            fleet.add_device(device, from_fleet=True, settings={"server": {"url": counter.url}})
        fleet.publish(manifest.version, bundle)
        say(f"{MODEL}: rolling out to {len(DEVICES)} devices, one after the other")
        rollout = fleet.roll_out(manifest.version, _POLICY)
        eventually(lambda: fleet.rollout(rollout)["state"] == "COMPLETED", _TIMEOUT_S, "the rollout is complete")
        downloads = [
            Download(received=counter.received(device), variant=(fleet.reported(device) or {}).get("variant", ""))
            for device in DEVICES
        ]
    return judge(manifest, downloads, machine=platform.machine(), broker=broker)


def offered_to_all(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle in `folder` whose variants are for every architecture."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    write_manifest(copy, replace(manifest, variants=[replace(one, architectures=[]) for one in manifest.variants]))
    return copy


def judge(manifest: Manifest, downloads: list[Download], *, machine: str, broker: str) -> Result:
    """Which device was first, the downloads themselves tell: it received more of the variants."""
    sizes = {variant.name: variant.file.size_bytes for variant in manifest.variants}
    by_bytes = sorted(downloads, key=lambda one: -sum(_of_variants(manifest, one).values()))
    first, second = by_bytes[0], by_bytes[-1]
    candidates = {variant.name for variant in candidates_for(manifest, machine)}
    received = _of_variants(manifest, second)
    ratio = round(sum(received.values()) / sizes[second.variant], 3) if sizes.get(second.variant) else float("inf")
    whole = sum({artifact.sha256: artifact.size_bytes for artifact in manifest.artifacts()}.values())
    was_a_choice = len(candidates) > 1 and set(_of_variants(manifest, first)) == candidates
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f"<= {TARGET}, after a device that downloaded all of several candidates",
        holds=ratio <= TARGET and was_a_choice,
        figures={
            "variants_bytes": sizes,
            "candidates_for_this_cpu": sorted(candidates),
            "whole_bundle_bytes": whole,
            "devices": {
                name: {
                    "runs": one.variant,
                    "variants_downloaded_bytes": _of_variants(manifest, one),
                    "all_downloaded_bytes": sum(one.received.values()),
                    "share_of_whole_bundle": round(sum(one.received.values()) / whole, 3),
                }
                for name, one in zip(DEVICES, (first, second), strict=True)
            },
            "broker": broker,
        },
    )


def _of_variants(manifest: Manifest, download: Download) -> dict[str, int]:
    names = {variant.file.sha256: variant.name for variant in manifest.variants}
    return {names[digest]: count for digest, count in download.received.items() if digest in names}
