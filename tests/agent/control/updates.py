"""Models, bundles and desired states for the tests of the update machine."""

from __future__ import annotations

from hypothesis import strategies as st

from edge_agent.control.state import Installed
from fleet_protocol.messages import Assignment, Desired, Phase, Probation

MODELS = ("ears", "eyes")
BUNDLES = {name: tuple(f"{place}{number}".ljust(64, "0") for number in range(3)) for place, name in enumerate(MODELS)}
UNPROVEN = (Phase.WARMING, Phase.PROBATION)
IN_WORK = (Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED, *UNPROVEN)
MAX_RESTARTS = 2

CHOICES = st.fixed_dictionaries({name: st.none() | st.sampled_from(BUNDLES[name]) for name in MODELS})
RETRIES = st.lists(st.sampled_from([bundle for bundles in BUNDLES.values() for bundle in bundles]), max_size=2)


def desired(generation: int, choice: dict[str, str | None], retry: list[str] | None = None) -> Desired:
    return Desired(
        fleet="f",
        device="d",
        generation=generation,
        issued_at_ns=1,
        assignments=[
            Assignment(model=name, version="1.0.0", bundle=bundle) for name, bundle in choice.items() if bundle
        ],
        probation=Probation(max_machine_restarts=MAX_RESTARTS),
        retry=retry or [],
    )


def bundle_of(installed: Installed | None) -> str | None:
    return installed.bundle if installed else None
