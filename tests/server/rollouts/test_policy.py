"""A policy is refused when it is written, with the path and what is allowed there."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.errors import InvalidRequestError
from fleet_server.rollouts.policy import MAX_POLICY_BYTES, gate_name, parse_policy, policy_document


def _stage(**changes: Any) -> dict[str, Any]:
    return {"bake_s": 60, **changes}


def test_an_empty_policy_has_growing_stages_and_every_gate() -> None:
    policy = parse_policy(b"{}")
    assert [gate_name(gate) for gate in policy.gates] == [
        "update_failures",
        "losses",
        "error_rate",
        "outcome_accuracy",
    ]
    assert [stage.percent for stage in policy.stages] == [5, 25, 100]
    assert not policy.require_approval


def test_a_policy_written_out_reads_back_the_same() -> None:
    policy = parse_policy(
        {
            "selector": {"labels": {"site": "lyon"}},
            "stages": [_stage(count=1), _stage(count=5), _stage(percent=50), _stage(percent=100)],
            "gates": [{"gate": "outcome_accuracy", "max_drop": 0.1}],
            "probation": {"duration_s": 5},
            "salt": "s",
        }
    )
    assert parse_policy(policy_document(policy)) == policy
    assert parse_policy(msgspec.json.encode(policy_document(policy))) == policy


@pytest.mark.parametrize(
    ("document", "path", "hint"),
    [
        ({"stagess": []}, "`$`", "did you mean `stages`"),
        ({"selector": {"label": {}}}, "`$.selector`", "allowed: labels"),
        ({"stages": [_stage(percent=100, bake=1)]}, "`$.stages[0]`", "did you mean `bake_s`"),
        ({"probation": {"duration": 1}}, "`$.probation`", "did you mean `duration_s`"),
        ({"gates": [{"gate": "error_rate", "max_incraese": 0.1}]}, "`$.gates[0]`", "did you mean `max_increase`"),
        ({"gates": [{"gate": "p99"}]}, "`$.gates[0].gate`", "allowed: update_failures, losses, error_rate, latency,"),
        ({"gates": [{"max_share": 0.1}]}, "`$.gates[0]`", "`gate`"),
        ({"gates": []}, "`$.gates`", ">= 1"),
        ({"gates": [{"gate": "error_rate"}] * 2}, "`$.gates`", "2 times"),
        ({"gates": [{"gate": "update_failures", "max_share": 1}]}, "`$.gates[0].max_share`", "< 1"),
        ({"gates": [{"gate": "outcome_accuracy", "alpha": 0}]}, "`$.gates[0].alpha`", "> 0"),
        ({"gates": [{"gate": "outcome_accuracy", "max_drop": 0}]}, "`$.gates[0].max_drop`", "> 0"),
        ({"stages": []}, "`$.stages`", ">= 1"),
        ({"stages": [_stage(percent=50)]}, "`$.stages`", "percent` 100"),
        ({"stages": [_stage(count=50)]}, "`$.stages`", "percent` 100"),
        ({"stages": [_stage()]}, "`$.stages[0]`", "either `percent` or `count`"),
        ({"stages": [_stage(percent=100, count=1)]}, "`$.stages[0]`", "either `percent` or `count`"),
        ({"stages": [_stage(percent=0), _stage(percent=100)]}, "`$.stages[0].percent`", "> 0"),
        ({"stages": [_stage(percent=101)]}, "`$.stages[0].percent`", "<= 100"),
        ({"stages": [_stage(percent=9), _stage(percent=9), _stage(percent=100)]}, "`$.stages[1].percent`", "beyond 9"),
        ({"stages": [_stage(count=3), _stage(count=2), _stage(percent=100)]}, "`$.stages[1].count`", "beyond 3"),
        ({"stages": [_stage(percent=9), _stage(count=9), _stage(percent=100)]}, "`$.stages[1]`", "counts first"),
        ({"stages": [{"percent": 100}]}, "`$.stages[0]`", "bake_s"),
        ({"stages": [_stage(percent=100, bake_s=math.nan)]}, "`$.stages[0].bake_s`", "float"),
        ({"on_inconclusive": "pass"}, "`$.on_inconclusive`", "allowed: pause"),
        ({"max_bake_extensions": -1}, "`$.max_bake_extensions`", ">= 0"),
        ({"deploy_deadline_s": 0}, "`$.deploy_deadline_s`", "> 0"),
    ],
)
def test_a_mistake_is_refused_with_its_path_and_what_is_allowed(document: dict[str, Any], path: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_policy({**document})
    assert path in str(refused.value)
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000, b" " * (MAX_POLICY_BYTES + 1)]
)
def test_a_document_that_is_no_policy_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_policy(document)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_json_is_either_a_policy_or_refused(document: Any) -> None:
    try:
        policy = parse_policy(document if isinstance(document, dict) else {"stages": document})
    except InvalidRequestError:
        return
    assert policy.stages[-1].percent == 100
    assert policy.gates
