"""What a device's report proves about a rollout, and what it does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleet_protocol.messages import Assignment, ModelReport, Phase, Reported
from fleet_server.rollouts.observation import Incumbent, RolloutDevice, exposed_device, read_report
from fleet_server.rollouts.state_machine import ExposedDevice

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
S = 1_000_000_000
_BEFORE = Assignment(model="digits", version="1.0.0", bundle=OLD)


def _facts(report: Reported | None, *, restored: bool = False, first: bool = False, after_s: int = 1) -> ExposedDevice:
    row = RolloutDevice(
        device="d",
        stage=0,
        incumbent=Incumbent(assignments=[] if first else [_BEFORE], restored=restored),
        assigned_generation=5,
        assigned_ns=100 * S,
        report=report,
        online=True,
    )
    return exposed_device(row, model="digits", candidate=NEW, deploy_deadline_s=60, now_ns=(100 + after_s) * S)


def _report(generation: int = 5, **entry: Any) -> Reported:
    models = [ModelReport(model="digits", **entry)] if entry else []
    return Reported(device="d", boot_id="00000000-00000001", sequence=1, at_ns=0, generation=generation, models=models)


@pytest.mark.parametrize(
    ("report", "phase"),
    [
        (None, Phase.PENDING),
        (_report(), Phase.PENDING),
        (_report(phase=Phase.HEALTHY, active=NEW, desired=NEW), Phase.HEALTHY),
        (_report(6, phase=Phase.HEALTHY, active=NEW, desired=NEW), Phase.HEALTHY),
        (_report(4, phase=Phase.HEALTHY, active=NEW, desired=NEW), Phase.PENDING),  # an older report
        (_report(phase=Phase.HEALTHY, active=OLD, desired=NEW), Phase.PENDING),  # healthy, but not with the candidate
        (_report(phase=Phase.HEALTHY, active=OLD, desired=OLD), Phase.PENDING),
        (_report(phase=Phase.DOWNLOADING, active=OLD, desired=NEW), Phase.DOWNLOADING),
        (_report(phase=Phase.REVERTED, active=OLD, desired=NEW), Phase.REVERTED),
        (_report(phase=Phase.FAILED, active=OLD, desired=OTHER), Phase.PENDING),  # about another update
    ],
)
def test_the_phase_is_that_of_the_candidate_since_the_assignment(report: Reported | None, phase: Phase) -> None:
    assert _facts(report).phase is phase


def test_a_device_without_an_end_is_lost_after_the_deadline_and_found_when_it_reports_one() -> None:
    moving = _report(phase=Phase.DOWNLOADING, active=OLD, desired=NEW)
    assert _facts(moving, after_s=60).phase is Phase.DOWNLOADING
    assert _facts(moving, after_s=61).phase is Phase.LOST
    assert _facts(None, after_s=61).phase is Phase.LOST
    assert _facts(_report(phase=Phase.HEALTHY, active=NEW, desired=NEW), after_s=99).phase is Phase.HEALTHY


@pytest.mark.parametrize(
    ("report", "first", "is_back"),
    [
        (None, False, False),
        (_report(phase=Phase.HEALTHY, active=OLD, desired=OLD), False, True),
        (_report(4, phase=Phase.HEALTHY, active=OLD, desired=OLD), False, False),  # it may still take up the candidate
        (_report(phase=Phase.HEALTHY, active=NEW, desired=NEW), False, False),
        (_report(phase=Phase.DOWNLOADING, active=NEW, desired=OLD), False, False),
        (_report(phase=Phase.REVERTED, active=OTHER, desired=OLD), False, True),  # the last good one, as it cannot have
        (_report(phase=Phase.FAILED, active=NEW, desired=OLD), False, False),
        (_report(phase=Phase.FAILED, desired=OLD), False, False),
        (_report(), False, False),
        (_report(), True, True),  # there was no model, and there is none again
        (_report(phase=Phase.HEALTHY, active=NEW), True, False),
        (_report(4), True, False),
    ],
)
def test_a_device_is_back_only_when_it_says_so_after_the_restore(
    report: Reported | None, first: bool, is_back: bool
) -> None:
    assert _facts(report, restored=True, first=first).is_back is is_back
    assert not _facts(report, restored=False, first=first).is_back


@pytest.mark.parametrize("document", [None, {}, {"schema": 1, "device": 7}, {"models": "x"}])
def test_a_report_that_cannot_be_read_proves_nothing(document: dict[str, Any] | None) -> None:
    assert read_report(document) is None


def test_the_incumbent_that_counts_is_the_one_that_answered_most() -> None:
    shadow = Assignment(model="digits", version="3.0.0", bundle=OTHER, shadow=True)
    small = Assignment(model="digits", version="2.0.0", bundle=NEW, arm="b", weight=0.1)
    assert Incumbent(assignments=[shadow, small, _BEFORE]).main == _BEFORE
    assert Incumbent(assignments=[shadow]).main is None


def test_only_the_arm_main_speaks_of_a_candidate() -> None:
    report = _report(phase=Phase.DOWNLOADING, active=OLD, desired=NEW)
    other_arm = ModelReport(model="digits", arm="b", phase=Phase.HEALTHY, active=NEW, desired=NEW)
    shadow = ModelReport(model="digits", arm="c", phase=Phase.HEALTHY, active=NEW, desired=NEW, shadow=True)

    facts = _facts(msgspec.structs.replace(report, models=[other_arm, shadow, *report.models]))

    assert facts.phase is Phase.DOWNLOADING


def test_a_device_whose_incumbent_was_another_arm_is_back_when_that_arm_says_so() -> None:
    incumbent = Assignment(model="digits", version="1.0.0", bundle=OLD, arm="b", weight=0.8)
    small = Assignment(model="digits", version="1.0.0", bundle=OTHER, arm="c", weight=0.2)
    back = ModelReport(model="digits", arm="b", phase=Phase.HEALTHY, active=OLD, desired=OLD)
    gone = ModelReport(model="digits", phase=Phase.PENDING)
    row = RolloutDevice(
        device="d",
        stage=0,
        incumbent=Incumbent(assignments=[small, incumbent], restored=True),
        assigned_generation=5,
        assigned_ns=0,
        report=msgspec.structs.replace(_report(), models=[back, gone]),
        online=True,
    )

    facts = exposed_device(row, model="digits", candidate=NEW, deploy_deadline_s=60, now_ns=1)

    assert facts.is_back and facts.phase is Phase.HEALTHY
