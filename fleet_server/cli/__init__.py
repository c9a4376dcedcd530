"""The `fleet` command.

Exit codes, stable:
0  done
1  the server refused, or what was asked about does not hold (a conflict, not found, an untrusted bundle,
   a broken audit chain, a watched rollout that did not complete)
2  wrong usage, or a wrong setting, policy or file
3  the server, or a part it needs, is away: try again
4  no API key or sign-in, one that is unknown, over or revoked, or its role does not allow this
130 interrupted

Results go to standard output, as tables or with `--json` as JSON; errors are one line on standard error.
"""

from __future__ import annotations

import sys

import typer

from fleet_server.cli import (
    audit,
    broker_config,
    database,
    devices,
    drift,
    enrolment_tokens,
    fleet_state,
    keys,
    login,
    models,
    operators,
    rollouts,
    serve,
    simulate,
    starting,
    telemetry,
)
from fleet_server.cli.exits import report_error
from fleet_server.demo import cli as demo

app = typer.Typer(
    name="fleet",
    help="Operate an edgefleet server and its fleet.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
demo.register(app)
starting.register(app)
serve.register(app)
broker_config.register(app)
devices.register(app)
app.add_typer(enrolment_tokens.app, name="tokens")
fleet_state.register(app)
telemetry.register(app)
simulate.register(app)
app.add_typer(models.app, name="models")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(keys.app, name="keys")
app.add_typer(operators.app, name="operators")
app.add_typer(audit.app, name="audit")
login.register(app)
app.add_typer(database.app, name="db")
app.add_typer(drift.app, name="drift")


def main() -> None:
    """Run the command; never shows a traceback for an error that is not ours to fix."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last line of defence: every error becomes a line and an exit code
        sys.exit(report_error(error, as_json="--json" in sys.argv))
