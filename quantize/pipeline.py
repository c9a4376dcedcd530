"""From an fp32 model to a bundle: quantize, measure, judge, write.

1. Quantize with the calibration samples.
2. Measure fp32 and int8 on the selection samples, which are not the calibration samples.
3. Judge: int8 ships only when its metric holds (`quantize.gate`); otherwise fp32 ships and the report says why.
4. Measure what ships once more on the final samples where there are some: that is the promise in the manifest.
5. Write the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fleet_protocol.manifest import FeatureReference, Lineage, Manifest, Task
from quantize.bundle import BundleParts, VariantFile, check_output, write_bundle
from quantize.data import Inputs, Samples
from quantize.errors import QuantizationFailedError
from quantize.evaluation import Measurement, loaded, measure
from quantize.gate import DEFAULT_MAX_DROP, Verdict, judge
from quantize.golden import FP32_TOLERANCE_FLOOR, INT8_TOLERANCE_FLOOR
from quantize.metrics import METRICS, Metric
from quantize.references import default_features
from quantize.static_int8 import QUANTIZATION, opset_of, quantize_static_int8

FP32, INT8 = "fp32", "int8"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to quantize and how to judge it.

    `calibration` and `selection` must not share samples. `final` is where the promised metric is measured,
    `reference` the training inputs behind the features' distributions; without them the selection and the
    calibration samples serve. `card` is the model card in
    Markdown. `keep_fp32` ships fp32 beside an accepted int8. `features` None watches those
    that suit the inputs.
    """

    source: str
    fp32: bytes
    model: str
    version: str
    created_at_ns: int
    calibration: Samples
    selection: Samples
    final: Samples | None = None
    reference: Inputs | None = None
    task: Task = "classification"
    metric: Metric = METRICS["accuracy"]
    max_drop: float = DEFAULT_MAX_DROP
    keep_fp32: bool = False
    features: Sequence[FeatureReference] | None = None
    labels: Sequence[str] = ()
    lineage: Lineage | None = None
    licence: str = ""
    description: str = ""
    card: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured on the selection samples, what ships, and why."""

    metric: str
    measurements: dict[str, Measurement]
    shipped: tuple[str, ...]
    reason: str
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        """The report as plain values; the manifest only by what a reader compares."""
        return {
            "model": self.manifest.model,
            "version": self.manifest.version,
            "metric": self.metric,
            "variants": {name: asdict(measured) for name, measured in self.measurements.items()},
            "shipped": list(self.shipped),
            "expected": {variant.name: variant.expected for variant in self.manifest.variants},
            "reason": self.reason,
        }


def quantize_to_bundle(request: Request, folder: Path) -> Report:
    """Make the bundle at `folder`. Raises a UserError of `quantize.errors` for what the caller must mend."""
    check_output(folder)
    opset_of(request.fp32, request.source)
    with loaded(request.fp32) as model:
        specs = model.inputs
    measurements = {FP32: measure(request.fp32, request.selection, request.metric)}
    files = {FP32: request.fp32}
    try:
        files[INT8] = quantize_static_int8(request.fp32, request.calibration.inputs, specs)
    except QuantizationFailedError as error:
        verdict = Verdict(accepted=False, reason=str(error))
    else:
        measurements[INT8] = measure(files[INT8], request.selection, request.metric)
        verdict = judge(
            metric=request.metric,
            fp32=measurements[FP32].metrics[request.metric.name],
            int8=measurements[INT8].metrics[request.metric.name],
            max_drop=request.max_drop,
        )
    shipped = ((INT8, FP32) if request.keep_fp32 else (INT8,)) if verdict.accepted else (FP32,)
    variants = [_variant(request, name, files[name], measurements[name]) for name in shipped]
    manifest = write_bundle(folder, _parts(request, variants, default_features(specs)))
    return Report(
        metric=request.metric.name, measurements=measurements, shipped=shipped, reason=verdict.reason, manifest=manifest
    )


def _variant(request: Request, name: str, content: bytes, selected: Measurement) -> VariantFile:
    measured = selected if request.final is None else measure(content, request.final, request.metric)
    return VariantFile(
        name=name,
        content=content,
        quantization=QUANTIZATION if name == INT8 else "none",
        tolerance_floor=INT8_TOLERANCE_FLOOR if name == INT8 else FP32_TOLERANCE_FLOOR,
        expected=measured.metrics,
    )


def _parts(request: Request, variants: Sequence[VariantFile], suitable: Sequence[FeatureReference]) -> BundleParts:
    calibration, selection = request.calibration.inputs, request.selection.inputs
    return BundleParts(
        model=request.model,
        version=request.version,
        task=request.task,
        created_at_ns=request.created_at_ns,
        variants=variants,
        reference=calibration if request.reference is None else request.reference,
        unseen={name: np.concatenate([calibration[name], selection[name]]) for name in calibration},
        features=suitable if request.features is None else request.features,
        labels=request.labels,
        lineage=_with_calibration(request.lineage or Lineage(), request.calibration),
        licence=request.licence,
        description=request.description,
    )


def _with_calibration(lineage: Lineage, calibration: Samples) -> Lineage:
    # labels play no part in calibration
    digest = replace(calibration, labels=None).sha256()
    return msgspec.structs.replace(lineage, calibration_data_sha256=digest)
