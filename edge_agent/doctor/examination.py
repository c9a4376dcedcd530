"""The whole examination: the machine always, what a config names where there is one that can be read."""

from __future__ import annotations

from pathlib import Path

from edge_agent.config import AgentConfig, load_config
from edge_agent.doctor.findings import Finding, fail, ok
from edge_agent.errors import ConfigError


def examine(config_file: Path | None) -> list[Finding]:
    """Every finding, in the order in which they are told. Never raises for what is wrong: that is a finding."""
    from edge_agent.doctor.fleet import config_findings
    from edge_agent.doctor.machine import machine_findings
    from edge_agent.doctor.updates import update_findings

    config, read = AgentConfig(), None
    if config_file is not None:
        try:
            config = load_config(config_file)
            read = ok("config", f"{config_file} is right")
        except ConfigError as error:
            read = fail("config", str(error), "correct that setting; docs/configuration.md lists all of them")
    findings = machine_findings(config.runtime)
    if read is not None:
        findings.append(read)
    return [*findings, *config_findings(config), *update_findings(config)]
