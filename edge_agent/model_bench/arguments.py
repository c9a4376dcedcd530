"""The arguments of `edge-agent bench`, without anything that measures: every command of the agent builds them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `edge-agent bench`."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--batch", default="1", metavar="1,4,16", help="batch sizes")
    parser.add_argument("--threads", metavar="1,2", help="numbers of threads; by default 1 and the usable cores")
    parser.add_argument(
        "--variant", action="append", default=[], type=Path, metavar="OTHER.onnx", help="another file to compare with"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long to measure in all")
    parser.add_argument("--inputs", metavar="FILE.npz", help="inputs by name; made up without it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, metavar="AGENT.toml", help="put what is recommended into this config")
    parser.add_argument("--model", dest="name", metavar="NAME", help="with --write: the model that gets the variant")
