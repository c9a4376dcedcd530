"""The `edge-quantize` entry point: says what to install where only the agent is, then hands over to `quantize.cli`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; returns the exit status."""
    try:
        from quantize.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("edge_agent", "fleet_protocol", "quantize"):
            raise
        print(f"edge-quantize: {error.name} is not installed: pip install 'edgefleet[quantize]'", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2
    return run()
