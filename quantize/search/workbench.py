"""Build a candidate and find out what it is worth: the search's hands.

Every candidate is measured beside fp32 as it was given, in turns; its metric is on the selection samples. What is found
goes into the journal before the next candidate begins. A candidate that cannot be built, loaded or run is a result
with its reason, never an end of the search.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edge_agent.errors import AgentError
from edge_agent.runtime.memory import footprint
from edge_agent.runtime.session import Arrays, Model
from quantize.calibration import Calibration
from quantize.corrections import pairs
from quantize.data import Inputs, Samples, batches
from quantize.errors import InvalidDataError, InvalidModelError, QuantizationFailedError
from quantize.evaluation import run_all, signal_to_noise_db
from quantize.layers import Layer
from quantize.metrics import Metric
from quantize.preparation import prepare
from quantize.progress import Progress
from quantize.quantizers import build, leftover_nodes
from quantize.scheme import Form, Scheme
from quantize.search.journal import Journal
from quantize.search.latency import Latency, measure_in_turns
from quantize.search_report import CandidateResult, Status

SCREENING_S = 0.06
"""How long a candidate is measured beside fp32 when it is met."""

SIMD_CHANNELS = 16
"""Channels in a block of ONNX Runtime's blocked layout with AVX-512."""
MAX_FILES_IN_MEMORY = 8


@dataclass(frozen=True, kw_only=True)
class CandidateParts:
    """What candidates are made of: the given and the rewritten fp32 model, its layers, what calibration found.

    `is_rewritten` is False where `model` is the given one but for the names of its nodes.
    """

    given: bytes
    model: bytes
    is_rewritten: bool
    layers: Sequence[Layer]
    calibration: Calibration
    calibration_inputs: Inputs


class Workbench:
    """Candidates of one prepared model, measured on `selection` by `metric`. A context manager: it holds files."""

    def __init__(
        self,
        *,
        prepared: CandidateParts,
        selection: Samples,
        metric: Metric,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.prepared, self.selection, self.metric, self.journal = prepared, selection, metric, journal
        self._progress = progress
        self._folder = Path(tempfile.mkdtemp(prefix="edge-quantize-"))
        self._files: dict[str, bytes] = {}
        self.tried: dict[str, CandidateResult] = {}
        self.least_speedup = 0.0
        self._layer_nodes = {layer.name: layer.nodes for layer in prepared.layers}

    def __enter__(self) -> Workbench:
        try:
            self._open()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, AgentError):
                raise InvalidModelError(f"the agent's runtime cannot run the model: {error}") from None
            raise
        return self

    def _open(self) -> None:
        """Measure fp32 as it was given: everything is compared with it."""
        self.given = self.load(self.prepared.given)
        self.sample: Arrays = self.given.prepare(
            next(batches(self.selection.take(np.zeros(1, dtype=np.int64)).inputs, self.given.inputs))
        )
        self.given_outputs = run_all(self.given, self.selection.inputs)
        self.given_metric = self.metric(self.given_outputs, self.selection)
        self.given_result = self.evaluate(Scheme(form=Form.GIVEN), by="given")

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def load(self, content: bytes) -> Model:
        """The model in the agent's runtime. Raises AgentError."""
        path = self._folder / "candidate.onnx"
        path.write_bytes(content)
        return Model.load(path)

    def content(self, scheme: Scheme) -> bytes:
        """The candidate's file. Raises QuantizationFailedError."""
        found = self._files.get(scheme.key)
        if found is None:
            found = self.journal.content(scheme.key) or self.build(scheme)
            self._files = (
                {scheme.key: found} if len(self._files) >= MAX_FILES_IN_MEMORY else {**self._files, scheme.key: found}
            )
        return found

    def build(self, scheme: Scheme) -> bytes:
        """Make the candidate's file. Raises QuantizationFailedError."""
        if scheme.form is Form.GIVEN:
            return self.prepared.given
        if scheme.form is Form.FLOAT:
            return self._rewritten(scheme)
        return build(
            self._rewritten(scheme) if scheme.fused_attention else self.prepared.model,
            scheme,
            self.prepared.calibration,
            excluded_nodes=[node for layer in scheme.excluded for node in self._layer_nodes[layer]],
            inputs=self.prepared.calibration_inputs,
        )

    def float_schemes(self) -> list[Scheme]:
        """The ways to rewrite the fp32 graph that differ in what they make of this one."""
        schemes = [Scheme(form=Form.FLOAT)] if self.prepared.is_rewritten else []
        padded = Scheme(form=Form.FLOAT, padded_channels=SIMD_CHANNELS)
        if self._rewritten(padded) != self.prepared.model:
            schemes.append(padded)
        if self.has_attention:
            schemes.append(Scheme(form=Form.FLOAT, fused_attention=True))
        return schemes

    @cached_property
    def has_attention(self) -> bool:
        """Whether the graph holds attention that can be fused into one operator."""
        return self._rewritten(Scheme(form=Form.FLOAT, fused_attention=True)) != self.prepared.model

    @cached_property
    def has_equalisable_pairs(self) -> bool:
        """Whether the graph holds layers that cross-layer equalisation applies to."""
        return bool(pairs(self.prepared.model))

    def _rewritten(self, scheme: Scheme) -> bytes:
        if not scheme.padded_channels and not scheme.fused_attention:
            return self.prepared.model
        return prepare(
            self.prepared.given, blocked_channels=scheme.padded_channels, fuse_attention=scheme.fused_attention
        ).model

    def evaluate(self, scheme: Scheme, *, by: str) -> CandidateResult:
        """What the candidate is worth, from the journal where it is known.

        The metric of one that is slower than `least_speedup` is not measured.
        """
        key = scheme.key
        if key in self.tried:
            return self.tried[key]
        known = self.journal.result(key)
        if known is None and self.journal.killed_the_process(key):
            known = _result(scheme, by, Status.INTERRUPTED, "the process ended twice while this candidate was tried")
        if known is None:
            self._progress.step(f"{scheme.name}: {scheme.quantization}")
            was_interrupted = self.journal.was_interrupted(key)
            self.journal.begin(key)
            try:
                known, content = self._measured(scheme, by)
                if was_interrupted and not known.reason:
                    known = replace(known, reason="interrupted earlier, then tried again")
            except KeyboardInterrupt:
                self.journal.leave(key)
                raise
            self.journal.end(key, known, content)
        self.tried[key] = known
        return known

    def speeds(self, models: Sequence[Model], *, budget_s: float = SCREENING_S) -> list[Latency]:
        """The latencies of models for one sample, in turns."""
        return measure_in_turns(models, self.sample, budget_s=budget_s)

    def _measured(self, scheme: Scheme, by: str) -> tuple[CandidateResult, bytes | None]:
        start = time.perf_counter()
        try:
            content = self.content(scheme)
            before = footprint()
            model = self.load(content)
            model.execute(self.sample)
            memory_bytes = footprint().growth_since(before)
            given, latency = self.speeds([self.given, model])
            speedup = given.p50_us / latency.p50_us
            value = noise_db = None
            if speedup >= self.least_speedup:
                outputs = run_all(model, self.selection.inputs)
                value = self.metric(outputs, self.selection)
                noise_db = signal_to_noise_db(self.given_outputs, outputs)
            nodes = leftover_nodes(content)
        except (AgentError, QuantizationFailedError, InvalidDataError, InvalidModelError) as error:
            return _result(scheme, by, Status.FAILED, str(error), took_s=time.perf_counter() - start), None
        return (
            CandidateResult(
                name=scheme.name,
                status=Status.MEASURED,
                reason="",
                scheme=scheme,
                by=by,
                metric=value,
                keeps=None if value is None else self.metric.keeps(fp32=self.given_metric, variant=value),
                signal_to_noise_db=noise_db,
                p50_us=latency.p50_us,
                p90_us=latency.p90_us,
                speedup=speedup,
                size_bytes=len(content),
                memory_bytes=memory_bytes,
                quantize_nodes=nodes[0],
                dequantize_nodes=nodes[1],
                took_s=time.perf_counter() - start,
            ),
            content,
        )


def _result(scheme: Scheme, by: str, status: Status, reason: str, *, took_s: float = 0.0) -> CandidateResult:
    return CandidateResult(name=scheme.name, status=status, reason=reason, scheme=scheme, by=by, took_s=took_s)
