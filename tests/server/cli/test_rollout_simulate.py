"""`fleet rollout simulate`: a policy file in, what became of simulated rollouts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fleet_server.cli import app
from fleet_server.errors import ConfigError, FleetError, InvalidRequestError
from tests.server.api.running import running_server

_POLICY = """
stages:
  - {percent: 20, bake_s: 3600}
  - {percent: 100, bake_s: 3600}
gates:
  - {gate: update_failures, max_share: 0.05}
  - {gate: latency, max_increase: 0.1}
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(_POLICY, encoding="utf-8")
    return str(path)


def simulate(*arguments: str, **environment: str) -> str:
    """What the command printed; raises what it raised."""
    result = CliRunner().invoke(app, ["rollout", "simulate", *arguments], env={"COLUMNS": "200", **environment})
    if isinstance(result.exception, FleetError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*arguments: str) -> Any:
    return msgspec.json.decode(simulate(*arguments, "--json"))


def test_a_slow_model_is_rolled_back_and_the_json_says_by_what(policy: str) -> None:
    found = document(policy, "--fleet", "400", "--break", "latency:+50%", "--runs", "3", "--processes", "1")
    assert found["ends"]["rolled_back"]["count"] == found["runs"] == found["gates"]["latency"] == 3
    assert found["alarms"]["share"] == 1.0
    assert found["exposed"]["median"] <= 80
    assert found["breaks"] == ["latency:+50%"]


def test_processes_do_not_change_the_answer(policy: str) -> None:
    asked = (policy, "--fleet", "300", "--break", "latency:+50%", "--runs", "2", "--seed", "5")
    assert document(*asked, "--processes", "1") == document(*asked, "--processes", "2")


def test_an_equal_model_is_shown_as_a_table(policy: str) -> None:
    shown = simulate(policy, "--fleet", "300", "--equal", "--runs", "1", "--processes", "1")
    assert "completed" in shown
    assert "a gate failed in" in shown


def test_a_fleet_of_a_hundred_thousand_costs_what_its_exposed_devices_do(tmp_path: Path) -> None:
    first = tmp_path / "first.yaml"
    first.write_text(_POLICY.replace("percent: 20", "count: 50") + "control: {percent: 0.1}\n", encoding="utf-8")
    found = document(str(first), "--fleet", "100000", "--break", "crash:60%", "--runs", "1", "--processes", "1")
    assert found["ends"]["rolled_back"]["count"] == 1


@pytest.mark.parametrize("more", [[], ["--equal", "--break", "crash:2%"]])
def test_either_a_harm_or_an_equal_model_is_asked_for(policy: str, more: list[str]) -> None:
    with pytest.raises(ConfigError, match="--equal"):
        simulate(policy, *more)


def test_bad_arguments_are_one_clear_error(policy: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="kinds are accuracy, errors"):
        simulate(policy, "--break", "heat:5%")
    with pytest.raises(ConfigError, match="cannot read the policy"):
        simulate(str(tmp_path / "none.yaml"), "--equal")
    broken = tmp_path / "broken.yaml"
    broken.write_text("gates: []", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="gates"):
        simulate(str(broken), "--equal")


def test_a_replay_reads_the_servers_series(policy: str, tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        key = {"EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys["viewer"]}
        with pytest.raises(InvalidRequestError, match="0 devices answered"):
            simulate(policy, "--equal", "--replay", "digits", "1.0.0", **key)
