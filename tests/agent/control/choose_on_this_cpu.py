"""One device's choice of a variant in a process of its own, to be run on another CPU. Started as a script.

Arguments: the folder of a bundle store, the bundle, and a file to read in place of /proc/cpuinfo, which an emulator of
user programs shows as its host has it. Prints one JSON object: what was chosen, and the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edge_agent.config import RuntimeSection
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.variant_choice import choose_variant
from edge_agent.runtime import cpu
from edge_agent.runtime.loading import Loading
from edge_agent.runtime.residency import Residency
from fleet_protocol.keys import PrivateKey

RELEASE = PrivateKey(b"r" * 32)


def main(store_folder: str, bundle: str, cpuinfo: str) -> None:
    """Choose, and tell."""
    cpu._CPUINFO = Path(cpuinfo)
    residency = Residency(budget_bytes=None, on_event=lambda *_: None)
    chosen = choose_variant(
        bundle,
        store=BundleStore(Path(store_folder), release_keys=[RELEASE.public], threshold=1, reserve_bytes=0),
        loading=Loading(runtime=RuntimeSection(threads=1), residency=residency, cache_dir=None),
    )
    residency.close()
    told = {
        "chosen": chosen.warm.variant.name,
        "right": {one.variant: one.right for one in chosen.figures},
        "fault": {one.variant: one.fault for one in chosen.figures},
        "p50_us": {one.variant: one.p50_us for one in chosen.figures},
        "signature": cpu.cpu_signature(),
    }
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
