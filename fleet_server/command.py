"""The `fleet` entry point: says what to install where only the agent is, then hands over to `fleet_server.cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command."""
    try:
        from fleet_server.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("edge_agent", "fleet_protocol", "fleet_server"):
            raise
        print(f"fleet: {error.name} is not installed: pip install 'edgefleet[server]'", file=sys.stderr)  # noqa: T201 - the command's own output
        sys.exit(2)
    run()
