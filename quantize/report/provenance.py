"""Where a report comes from and how its figures were measured: facts and sentences for every kind of page."""

from __future__ import annotations

from quantize.report import words
from quantize.report.findings import judged_on
from quantize.search_report import SearchReport


def facts(report: SearchReport) -> list[tuple[str, str]]:
    """Names and values."""
    samples = ", ".join(f"{count:,} {name}" for name, count in report.samples.items())
    less = "" if report.higher_is_better else ", less is better"
    return [
        ("source model", report.source),
        ("its SHA-256", report.source_sha256),
        ("made", words.moment(report.created_at_ns)),
        ("task", report.task),
        ("metric", f"{report.metric}{less}; at most {words.percent(report.max_drop)} may be lost"),
        ("samples", samples or "none named"),
        ("classes", ", ".join(report.labels) or "by number"),
        ("seed", str(report.seed)),
        ("CPU", f"{report.cpu_name} ({report.cpu})"),
        ("ONNX Runtime", report.onnxruntime),
        ("the search took", words.seconds(report.took_s)),
    ]


def how_measured(report: SearchReport) -> list[str]:
    """What was measured how, in sentences."""
    return [
        "Latency: one sample at a time in the agent's runtime, fp32 as given and the candidate in turns, so that a slow"
        " moment of the machine falls on both. p50 and p90 are over rounds; the speed is the ratio of the two medians."
        " Ratios can be compared between candidates, times in µs less so.",
        "The search's metrics are of the selection samples. What ships was measured again on the"
        f" {judged_on(report)} samples: those are the figures that the bundle's manifest promises.",
        "Ranges of activations come from the calibration samples alone.",
        "Keeps: the share of fp32's metric that a variant keeps"
        + ("." if report.higher_is_better else ", fp32's over the variant's where less is better."),
        "Memory: what loading the file and running it once adds to the process.",
        "Paired with fp32: McNemar's exact test, two-sided, on the samples that only one of the two answered rightly.",
        "Signal to noise: the power of the float model's outputs over that of the difference that quantizing one layer"
        " alone makes.",
    ]
