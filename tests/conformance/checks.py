"""Client programs that check themselves: one run in the client's environment, one result for each check.

A program defines functions named `check_…`; run with an address and a folder, it prints one JSON line for each.
"""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
_TIMEOUT_S = 120.0
_PREFIX = "check_"


def names_in(program: str) -> list[str]:
    """The checks that a program defines, in order."""
    tree = ast.parse((PROGRAMS / program).read_text(encoding="utf-8"))
    return [
        node.name.removeprefix(_PREFIX)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(_PREFIX)
    ]


def run(python: Path, program: str, *arguments: str | Path) -> dict[str, str | None]:
    """What went wrong in each check, None where nothing did. Raises RuntimeError when the program itself fails."""
    ended = subprocess.run(
        [python, PROGRAMS / program, *arguments], check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{program} ended with {ended.returncode}: {ended.stderr[-4000:]}")
    results: dict[str, str | None] = {}
    for line in ended.stdout.splitlines():
        name, fault = json.loads(line)
        results[name] = fault
    return results
