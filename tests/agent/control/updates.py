"""Models, bundles and desired states for the tests of the update machine."""

from __future__ import annotations

from hypothesis import strategies as st

from edge_agent.control.slots import parts_of
from edge_agent.control.state import Installed
from fleet_protocol.messages import Assignment, Desired, Phase, Probation

MODELS = ("ears", "eyes")
SHADOW_ARM = "s"
SLOTS = ("ears", "eyes", "eyes/b", "eyes/s")
"""One model with one arm, and one with two arms that may answer and one that sometimes shadows."""
BUNDLES = {name: tuple(f"{place}{number}".ljust(64, "0") for number in range(3)) for place, name in enumerate(MODELS)}
UNPROVEN = (Phase.WARMING, Phase.PROBATION)
IN_WORK = (Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED, *UNPROVEN)
MAX_RESTARTS = 2

Choice = dict[str, str | None]
"""The bundle of each slot, None where it is not assigned; "*" before the digest makes it a shadow."""


def bundles_of(slot: str) -> tuple[str, ...]:
    """What may be assigned to a slot: the arms of a model share its bundles."""
    return BUNDLES[parts_of(slot)[0]]


def choices_of(slot: str) -> st.SearchStrategy[str | None]:
    """A slot's part of a choice."""
    plain = st.none() | st.sampled_from(bundles_of(slot))
    if parts_of(slot)[1] != SHADOW_ARM:
        return plain
    return plain | st.sampled_from(bundles_of(slot)).map(lambda bundle: f"*{bundle}")


CHOICES = st.fixed_dictionaries({slot: choices_of(slot) for slot in SLOTS})
RETRIES = st.lists(st.sampled_from([bundle for bundles in BUNDLES.values() for bundle in bundles]), max_size=2)


def desired(
    generation: int, choice: Choice, retry: list[str] | None = None, weights: dict[str, float] | None = None
) -> Desired:
    assignments = []
    for slot, bundle in choice.items():
        if bundle:
            model, arm = parts_of(slot)
            assignments.append(
                Assignment(
                    model=model,
                    version="1.0.0",
                    bundle=bundle.removeprefix("*"),
                    arm=arm,
                    shadow=bundle.startswith("*"),
                    weight=(weights or {}).get(slot, 1.0),
                )
            )
    return Desired(
        fleet="f",
        device="d",
        generation=generation,
        issued_at_ns=1,
        assignments=assignments,
        probation=Probation(max_machine_restarts=MAX_RESTARTS),
        retry=retry or [],
    )


def bundle_of(installed: Installed | None) -> str | None:
    return installed.bundle if installed else None
