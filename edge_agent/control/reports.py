"""What the device says about its models: one report per slot. Pure.

Bounded by MAX_REPORTS, the protocol's limit of one message: what is assigned comes first.
"""

from __future__ import annotations

from edge_agent.control.slots import parts_of
from edge_agent.control.state import ControlState, ModelState
from fleet_protocol.messages import MAX_DETAIL_CHARS, ModelReport

MAX_REPORTS = 256


def model_reports(state: ControlState, *, measured_with: str = "") -> list[ModelReport]:
    """The reports of a state's slots, sorted by model and arm.

    Figures that were not `measured_with` what runs now, such as an earlier ONNX Runtime, are left out.
    """
    assigned_first = sorted(state.models.items(), key=lambda entry: (entry[1].target is None, entry[0]))
    reports = [_report(slot, model, measured_with) for slot, model in assigned_first[:MAX_REPORTS]]
    return sorted(reports, key=lambda report: (report.model, report.arm))


def _report(slot: str, model: ModelState, measured_with: str) -> ModelReport:
    active, role = model.active, model.target or model.stands_in
    name, arm = parts_of(slot)
    return ModelReport(
        model=name,
        arm=arm,
        phase=model.phase,
        active=active.bundle if active else None,
        version=active.version if active else "",
        variant=active.variant if active else "",
        desired=model.target.bundle if model.target else None,
        error=model.error[:MAX_DETAIL_CHARS],
        shadow=role.shadow if role else False,
        weight=role.weight if role else 1.0,
        variants=list(active.figures) if active and active.measured_with == measured_with else [],
    )
