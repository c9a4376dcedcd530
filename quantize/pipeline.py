"""From an fp32 model and samples to a bundle of variants that are each measured, judged and explained.

1. Refuse what cannot be quantized; rewrite the graph (`quantize.preparation`).
2. Calibrate once, with the calibration samples.
3. Search on the selection samples (`quantize.search`).
4. Judge what was chosen on the final samples: that is what the manifest promises.
5. Write the bundle with its report and model card.

Nothing is written to the bundle's folder before all of it is there. What an interrupted run found is kept in a folder
beside it, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from edge_agent.runtime.cpu import machine_facts
from edge_agent.version import AGENT_VERSION
from fleet_protocol.manifest import FeatureReference, Lineage, Manifest, Task
from quantize.bundle import BundleParts, VariantFile, check_output, class_names, write_bundle
from quantize.calibration import Calibration, calibrate
from quantize.data import Inputs, Samples, concatenated
from quantize.errors import UserError
from quantize.evaluation import loaded
from quantize.gate import DEFAULT_MAX_DROP
from quantize.golden import FP32_TOLERANCE_FLOOR, INT8_TOLERANCE_FLOOR
from quantize.layers import quantizable_layers
from quantize.metrics import METRICS, Metric
from quantize.preparation import fix_shapes, prepare, read_model
from quantize.progress import SILENT, Progress
from quantize.references import default_features
from quantize.report import render_html, write_report
from quantize.scheme import Form
from quantize.search.final import Judged, Judgement, judge_on_final
from quantize.search.journal import Journal
from quantize.search.search import Search, SearchOptions, SearchResult
from quantize.search.workbench import CandidateParts, Workbench
from quantize.search_report import SearchReport

ARCHITECTURES = ("x86_64", "aarch64")
PLACEMENT_S = 20.0
_FLOAT_FORMS = (Form.GIVEN, Form.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to quantize and how to judge it.

    `calibration`, `selection` and `final` must not share samples; without `final` the selection samples serve, and the
    report says so. `reference` are the training inputs behind the features' distributions; without them the calibration
    samples serve. `shapes` gives values to dynamic dimensions. `architectures` are those to ship variants for.
    `placement_s` bounds the walk over layers. `features` None watches those that suit the inputs. `card` is the model
    card in Markdown.
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
    shapes: dict[str, list[int]] | None = None
    architectures: Sequence[str] = ARCHITECTURES
    placement_s: float = PLACEMENT_S
    features: Sequence[FeatureReference] | None = None
    labels: Sequence[str] = ()
    lineage: Lineage | None = None
    licence: str = ""
    description: str = ""
    card: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, and the manifest of the bundle that was made."""

    search: SearchReport
    manifest: Manifest


def quantize_to_bundle(request: Request, folder: Path, *, progress: Progress = SILENT) -> Report:
    """Make the bundle at `folder`. Raises a UserError of `quantize.errors` for what the caller must mend.

    After an interruption, the same request goes on where it was.
    """
    check_output(folder)
    start = time.perf_counter()
    progress.stage("preparing the graph")
    given = fix_shapes(read_model(request.fp32, source=request.source), request.shapes or {}, source=request.source)
    prepared = prepare(given)
    with loaded(given) as model:
        specs = model.inputs
        class_names(request.task, request.labels, model.outputs)  # before a search for nothing
    journal = Journal(search_folder(folder), key=_search_key(request))
    try:
        parts = CandidateParts(
            given=given,
            model=prepared.model,
            is_rewritten=bool(prepared.rewrites),
            layers=quantizable_layers(prepared.model),
            calibration=_calibration(journal, prepared.model, request, progress),
            calibration_inputs=request.calibration.inputs,
        )
        with Workbench(
            prepared=parts, selection=request.selection, metric=request.metric, journal=journal, progress=progress
        ) as bench:
            options = SearchOptions(
                max_drop=request.max_drop, architectures=request.architectures, placement_s=request.placement_s
            )
            result = Search(bench, options, progress=progress).run()
            progress.stage("judging on the final samples")
            judgement = judge_on_final(
                bench, result, request.final or request.selection, labels=request.labels, max_drop=request.max_drop
            )
            judged = judgement.judged
            report = _report(request, result, judgement, prepared.rewrites, took_s=time.perf_counter() - start)
    except UserError:
        journal.remove()  # what must be mended changes the search
        raise
    finally:
        journal.close()
    progress.stage("writing the bundle")
    manifest = write_bundle(folder, _parts(request, judged, report, default_features(specs)))
    write_report(folder, report)
    journal.remove()
    return Report(search=report, manifest=manifest)


def search_folder(folder: Path) -> Path:
    """Where the search for the bundle at `folder` keeps what it found, until the bundle is made."""
    return folder.parent / f".{folder.name}.search"


def _search_key(request: Request) -> str:
    """What must be equal for an earlier search's findings to count: data, options, and the machine that measured."""
    facts = machine_facts()
    values = [
        hashlib.sha256(request.fp32).hexdigest(),
        *(samples.sha256() for samples in (request.calibration, request.selection)),
        request.metric.name,
        repr((request.max_drop, request.shapes, tuple(request.architectures), request.placement_s, request.seed)),
        ort.__version__,
        AGENT_VERSION,
        facts.signature,
        facts.model_name,
    ]
    return hashlib.sha256("\n".join(values).encode()).hexdigest()


def _calibration(journal: Journal, model: bytes, request: Request, progress: Progress) -> Calibration:
    kept = journal.calibration()
    if kept is not None:
        return Calibration.from_bytes(kept)
    progress.stage(f"calibrating on {len(request.calibration)} samples")
    calibration = calibrate(model, request.calibration.inputs, seed=request.seed, progress=None)
    journal.keep_calibration(calibration.to_bytes())
    return calibration


def _report(
    request: Request, result: SearchResult, judgement: Judgement, rewrites: Sequence[str], *, took_s: float
) -> SearchReport:
    facts = machine_facts()
    shipped = {one.candidate.key for one in judgement.judged}
    candidates = [
        msgspec.structs.replace(
            one,
            shipped=one.key in shipped,
            reason="ships" if one.key in shipped else judgement.dropped.get(one.key, one.reason),
        )
        for one in result.candidates
    ]
    names = {one.key: one.name for one in candidates}
    warnings = result.warnings + [f"{names[key]} {why}: it does not ship" for key, why in judgement.dropped.items()]
    if request.final is None:
        warnings.append("no final samples were given: what the bundle promises was measured on the selection samples")
    return SearchReport(
        model=request.model,
        version=request.version,
        source=request.source,
        source_sha256=hashlib.sha256(request.fp32).hexdigest(),
        created_at_ns=request.created_at_ns,
        task=request.task,
        metric=request.metric.name,
        higher_is_better=request.metric.higher_is_better,
        max_drop=request.max_drop,
        seed=request.seed,
        samples={
            "calibration": len(request.calibration),
            "selection": len(request.selection),
            "final": len(request.final) if request.final is not None else 0,
        },
        labels=list(request.labels),
        cpu=facts.signature,
        cpu_name=facts.model_name,
        onnxruntime=ort.__version__,
        took_s=took_s,
        rewrites=list(rewrites),
        candidates=candidates,
        layers=result.layers,
        shipped=[one.shipped for one in judgement.judged],
        warnings=warnings,
    )


def _parts(
    request: Request, judged: Sequence[Judged], report: SearchReport, suitable: Sequence[FeatureReference]
) -> BundleParts:
    unseen = concatenated(request.calibration, request.selection)
    if request.task == "anomaly" and unseen.labels is not None:
        # what is usual is the reference, not the faults among the samples
        unseen = unseen.take(np.flatnonzero(unseen.labels == 0))
    return BundleParts(
        model=request.model,
        version=request.version,
        task=request.task,
        created_at_ns=request.created_at_ns,
        variants=[_variant(one, request.metric.name) for one in judged],
        reference=request.calibration.inputs if request.reference is None else request.reference,
        unseen=unseen.inputs,
        labelled=request.selection,
        features=suitable if request.features is None else request.features,
        labels=request.labels,
        lineage=_lineage(request),
        licence=request.licence,
        description=request.description,
        card=request.card,
        report_html=render_html(report),
    )


def _variant(judged: Judged, metric: str) -> VariantFile:
    scheme = judged.candidate.scheme
    return VariantFile(
        name=scheme.name,
        content=judged.content,
        quantization=scheme.quantization,
        tolerance_floor=FP32_TOLERANCE_FLOOR if scheme.form in _FLOAT_FORMS else INT8_TOLERANCE_FLOOR,
        expected={metric: judged.shipped.metric},
        architectures=judged.candidate.architectures,
    )


def _lineage(request: Request) -> Lineage:
    return msgspec.structs.replace(
        request.lineage or Lineage(),
        # labels play no part in calibration
        calibration_data_sha256=replace(request.calibration, labels=None).sha256(),
        source_model_sha256=hashlib.sha256(request.fp32).hexdigest(),
        made_with=f"edgefleet {AGENT_VERSION}, onnxruntime {ort.__version__}",
    )
