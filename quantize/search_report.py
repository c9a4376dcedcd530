"""What a search for variants found: plain values that are written as JSON and read again to make the report pages.

Everything that was tried is here, also what failed, was interrupted or was refused, with the reason in a sentence.
Metrics are on the selection samples, but where `final` is said. Times are of this machine's CPU (`cpu`) with one
sample and one thread, each beside fp32 in turns.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from quantize.errors import InvalidOptionError
from quantize.scheme import Scheme

REPORT_SCHEMA = 1


class Status(StrEnum):
    """What became of a candidate."""

    MEASURED = "measured"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class CandidateResult(Struct, frozen=True, kw_only=True):
    """One candidate. Figures are None where it was not measured; `keeps` is `Metric.keeps` against fp32, and
    `signal_to_noise_db` compares its outputs with those of fp32.

    `quantize_nodes` and `dequantize_nodes` are those left after ONNX Runtime optimised the graph. `by` says which step
    of the search made it, `architectures` is as in the manifest.
    """

    name: str
    status: Status
    reason: str
    scheme: Scheme
    by: str = ""
    architectures: list[str] = field(default_factory=list)
    metric: float | None = None
    keeps: float | None = None
    signal_to_noise_db: float | None = None
    p50_us: float | None = None
    p90_us: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    quantize_nodes: int | None = None
    dequantize_nodes: int | None = None
    took_s: float = 0.0
    on_front: bool = False
    shipped: bool = False

    @property
    def key(self) -> str:
        """What tells this candidate from every other of the search."""
        return self.scheme.key


class LayerResult(Struct, frozen=True, kw_only=True):
    """One quantizable layer: what quantizing it costs in accuracy and time, and where it ended in the fastest variant.

    `signal_to_noise_db` is at the model's output with only this layer quantized (higher is better), `keeps` the share
    of the metric then, `float_gain_us` the microseconds that a run became shorter by leaving it in float, as measured
    when the search came to it (negative: longer). None where it was not asked.
    """

    name: str
    operator: str
    weights: int
    signal_to_noise_db: float | None = None
    keeps: float | None = None
    float_gain_us: float | None = None
    excluded: bool = False
    reason: str = ""


class ClassDelta(Struct, frozen=True, kw_only=True):
    """One class on the final samples: how many, and the share answered rightly by fp32 and by the variant."""

    label: str
    samples: int
    fp32: float
    variant: float


class ShippedVariant(Struct, frozen=True, kw_only=True):
    """A variant in the bundle, judged on the final samples, which nothing was chosen by.

    `fp32_only_right` and `variant_only_right` are the discordant pairs, `p_value` is McNemar's (exact, two-sided) on
    them; all None where the metric is not of right and wrong answers.
    """

    name: str
    quantization: str
    metric: float
    fp32_metric: float
    keeps: float
    size_bytes: int
    memory_bytes: int
    p50_us: float
    p90_us: float
    speedup: float
    fp32_only_right: int | None = None
    variant_only_right: int | None = None
    p_value: float | None = None
    classes: list[ClassDelta] = field(default_factory=list)


class SearchReport(Struct, frozen=True, kw_only=True):
    """The whole search. The first candidate is fp32 as it was given. `rewrites` are those of `quantize.preparation`,
    `warnings` are sentences that a user must not miss, such as where int8 loses."""

    schema: int = REPORT_SCHEMA
    model: str
    version: str
    source: str
    source_sha256: str
    created_at_ns: int
    task: str
    metric: str
    higher_is_better: bool
    max_drop: float
    seed: int
    samples: dict[str, int]
    labels: list[str]
    cpu: str
    cpu_name: str
    onnxruntime: str
    took_s: float
    rewrites: list[str] = field(default_factory=list)
    candidates: list[CandidateResult]
    layers: list[LayerResult] = field(default_factory=list)
    shipped: Annotated[list[ShippedVariant], Meta(min_length=1)]
    warnings: list[str] = field(default_factory=list)


def encode_report(report: SearchReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(path: Path) -> SearchReport:
    """The report in a file. Raises InvalidOptionError."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=SearchReport)
    except OSError as error:
        raise InvalidOptionError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise InvalidOptionError(f"{path} is not a report of edge-quantize: {error}") from None
    if report.schema != REPORT_SCHEMA:
        raise InvalidOptionError(f"{path} has schema {report.schema}, this edge-quantize reads {REPORT_SCHEMA}")
    return report
