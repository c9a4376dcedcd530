"""A workbench on a small network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quantize.calibration import calibrate
from quantize.data import Samples, split
from quantize.layers import quantizable_layers
from quantize.metrics import METRICS, Metric
from quantize.preparation import prepare
from quantize.progress import SILENT
from quantize.search.journal import Journal
from quantize.search.workbench import CandidateParts, Workbench

MakeBench = Callable[..., Workbench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """`make_bench(model, samples)`: a workbench that calibrates with one half and selects on the other."""
    with ExitStack() as stack:

        def make(model: bytes, samples: Samples, *, metric: Metric = METRICS["accuracy"]) -> Workbench:
            calibration, selection = split(samples, 2)
            rewritten = prepare(model)
            prepared = rewritten.model
            parts = CandidateParts(
                given=model,
                model=prepared,
                is_rewritten=bool(rewritten.rewrites),
                layers=quantizable_layers(prepared),
                calibration=calibrate(prepared, calibration.inputs),
                calibration_inputs=calibration.inputs,
            )
            journal = Journal(tmp_path / "search", key="test")
            stack.callback(journal.close)
            bench = Workbench(prepared=parts, selection=selection, metric=metric, journal=journal, progress=SILENT)
            return stack.enter_context(bench)

        yield make
