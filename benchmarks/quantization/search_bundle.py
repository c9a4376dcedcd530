"""`python -m benchmarks.quantization.search_bundle CASE_FOLDER BUNDLE_FOLDER`: our search, timed, in its own process.

The time is from the model and its data in memory to the written bundle, without imports: what the peers' programs
time. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.quantization.bundles import say
from benchmarks.quantization.parts import read_case
from quantize.pipeline import quantize_to_bundle


class _Told:
    """Says the stages on standard error, and no steps."""

    def stage(self, title: str, steps: int = 0) -> None:
        """Say it."""
        say(f"    {title}" + (f" ({steps} steps)" if steps else ""))

    def step(self, what: str) -> None:
        """Nothing."""


def main(case_folder: str, bundle_folder: str) -> None:
    """Search, and tell the seconds."""
    case = read_case(Path(case_folder))
    started = time.perf_counter()
    report = quantize_to_bundle(case.request(), Path(bundle_folder), progress=_Told())
    took_s = time.perf_counter() - started
    variants = [variant.name for variant in report.manifest.variants]
    print(json.dumps({"took_s": took_s, "variants": variants, "warnings": report.search.warnings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
