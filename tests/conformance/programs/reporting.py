"""Runs the checks of a client program and prints what came of each."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

_PREFIX = "check_"


def report(namespace: Mapping[str, Any]) -> None:
    """Run every `check_…` of a module; a coroutine function in a loop of its own."""
    for name, check in list(namespace.items()):
        if not name.startswith(_PREFIX):
            continue
        fault = None
        try:
            result = check()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception:  # noqa: BLE001 - the fault is the program's result
            fault = traceback.format_exc()
        sys.stdout.write(json.dumps([name.removeprefix(_PREFIX), fault]) + "\n")
