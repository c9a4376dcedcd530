"""A policy is refused when it is written, with the path and what is allowed there."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.errors import ConfigError, InvalidRequestError
from fleet_server.rollouts.policy import GATES, MAX_POLICY_BYTES, gate_name, parse_policy, policy_document
from fleet_server.rollouts.policy_file import read_policy_file, read_yaml_object


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
        ({"start_at": "2026-03-01"}, "`$.start_at`", "RFC 3339"),
        ({"start_at": "2026-03-01T22:00:00"}, "`$.start_at`", "offset"),
        ({"start_at": "2026-13-01T22:00:00Z"}, "`$.start_at`", "RFC 3339"),
        ({"exclude": [{"devices": ["a"]}, {}]}, "`$.exclude[1]`", "every device"),
        ({"rate": {"per_minute": 5, "max_per_minute": 4}}, "`$.rate`", "below `per_minute` 5"),
        ({"rate": {"growth": 2}}, "`$.rate`", "need a `per_minute`"),
        ({"jitter_s": 3600}, "`$.jitter_s`", "below `deploy_deadline_s`"),
        ({"deadline_s": 10_800}, "`$.deadline_s`", "have baked for 10800 s"),
        ({"selector": {"min_agent_version": "1.0"}}, "`$.selector`", "semantic version"),
        ({"selector": {"runs": ["", "newest"]}}, "`$.selector`", "semantic version"),
        ({"selector": {"labels": {"site": []}}}, "`$.selector`", "allows no value"),
        ({"exclude": [{"labels": {"site": []}}]}, "`$.exclude[0]`", "allows no value"),
        ({"maintenance": {"start": "22:00", "end": "05:00", "time_zone": "Lyon"}}, "`$.maintenance`", "Europe/Paris"),
        ({"maintenance": {"start": "24:00", "end": "05:00"}}, "`$.maintenance.start`", "regex"),
        ({"gates": [{"gate": "temperature", "max_increase_c": 1e9}]}, "`$.gates[0].max_increase_c`", "<= 100"),
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


@settings(max_examples=50, deadline=None)
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


@pytest.mark.parametrize("gate", GATES, ids=gate_name)
@pytest.mark.parametrize("margin", ["1e999", "NaN", "Infinity", "-1"])
def test_no_gate_takes_a_margin_that_is_no_bound(gate: Any, margin: str) -> None:
    [name] = [each for each in gate.__struct_fields__ if each.startswith("max_")]
    document = f'{{"gates": [{{"gate": "{gate_name(gate)}", "{name}": {margin}}}]}}'
    with pytest.raises(InvalidRequestError, match="gates"):
        parse_policy(document)


def test_the_start_is_read_with_its_offset() -> None:
    assert parse_policy({"start_at": "1970-01-01T02:00:00.5+01:00"}).start_ns == 3600 * 10**9
    assert parse_policy({}).start_ns == 0


_YAML = """
# nights only
start_at: 2026-03-01T22:00:00+01:00
maintenance: {start: 22:00, end: 05:00, days: [mon, tue]}
salt: no
stages:
  - &stage {percent: 5, bake_s: 1e3}
  - {percent: 100, bake_s: 60, needs_approval: true}
"""


def test_yaml_says_what_it_looks_like() -> None:
    """YAML 1.1 would read 22:00 as 1320, `no` as false and the start as a date."""
    policy = parse_policy(read_yaml_object(_YAML))
    assert policy.maintenance is not None
    assert (policy.maintenance.start, policy.salt, policy.stages[0].bake_s) == ("22:00", "no", 1000.0)
    assert policy.start_ns == 1_772_398_800 * 10**9


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (_bomb(), "more than 20000 values"),
        ("a: &a [*a]", "deeper than 20"),
        ("[" * 50, "deeper than 20"),
        ("salt: a\nsalt: b", "line 2: `salt` is there twice"),
        ("rate: {per_minute: 1, per_minute: 1000}", "`per_minute` is there twice"),
        ("22: b", "not a text"),
        ("? [a, b]\n: c", "not a text"),
        ("!!merge <<: {a: 1}", "not a text"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!timestamp 2026-01-01", "type date"),
        ("a: !!binary aGk=", "type bytes"),
        ("- a", "an object is expected"),
        ("", "an object is expected"),
        ("a: 1\n--- \nb: 2", "another document"),
        ("a: {", "line "),
        ("a: " + "9" * 5000, "digits"),
        ("x" * (MAX_POLICY_BYTES + 1), "limit"),
    ],
)
def test_yaml_that_is_no_plain_policy_is_refused(document: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(why)):
        read_yaml_object(document)


def test_a_key_that_is_there_twice_is_refused_in_json_too() -> None:
    with pytest.raises(InvalidRequestError, match="`salt` is there twice"):
        parse_policy('{"salt": "a", "salt": "b"}')


def test_a_policy_file_is_read_by_its_name_or_its_look(tmp_path: Path) -> None:
    for name, text in (("a.json", '{\t"salt": "s"}'), ("b.yaml", "salt: s"), ("c", '{"salt": "s"}'), ("d", "salt: s")):
        (tmp_path / name).write_text(text)
        assert read_policy_file(tmp_path / name) == {"salt": "s"}
    (tmp_path / "a.json").write_text("salt: s")
    with pytest.raises(InvalidRequestError, match=r"a\.json: policy: not JSON"):
        read_policy_file(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="cannot read"):
        read_policy_file(tmp_path / "none.yaml")
