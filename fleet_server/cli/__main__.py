"""`python -m fleet_server.cli` is the `fleet` command."""

from fleet_server.cli import main

main()
