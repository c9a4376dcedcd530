"""The arguments of `edge-agent enrol`, apart from what carries it out, so that no other command loads that."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--server", required=True, metavar="URL", help="the fleet server, https://HOST[:PORT]")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="the enrolment token; others on this machine may see it: prefer --token-file")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token, or - for stdin")
    parser.add_argument("--device", required=True, metavar="ID", help="what this device is to be called: a-z 0-9 _ -")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    parser.add_argument("--out", type=Path, default=Path("agent.toml"), metavar="FILE", help="default: agent.toml")
    parser.add_argument("--data-dir", default="agent-data", metavar="DIR", help="default: agent-data beside --out")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="the CA of the server's own certificate (PEM)")
    parser.add_argument("--replace", action="store_true", help="give a device that is enrolled here a new identity")
    parser.add_argument("--insecure", action="store_true", help="allow http:// to another machine: others can read it")
