"""Whatever a report holds, every way to show it works and is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from quantize.report import render_html, render_markdown, summary_lines
from quantize.scheme import Form, Integer, Ranges, Scheme
from quantize.search_report import (
    CandidateResult,
    ClassDelta,
    LayerResult,
    SearchReport,
    ShippedVariant,
    Status,
    encode_report,
)
from tests.quantize.report.test_markdown import columns, tables
from tests.quantize.report.test_page import Reader

TEXT = st.text(max_size=12) | st.sampled_from(
    ["</script>", "<b>", "a|b", "x\ny", "\x00", "\u202e", "]]>", "&amp;", "--"]
)
FLOAT = st.floats() | st.floats(0, 2) | st.floats(1, 1e6)
COUNT = st.integers(0, 10**12)
NAMES = st.sampled_from(["fp32", "int8-qdq-u8s8", "int8-qdq-s8s8"]) | TEXT
ARCHITECTURES = st.lists(st.sampled_from(["x86_64", "aarch64"]) | TEXT, max_size=2)


def or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


SCHEMES = st.builds(
    Scheme,
    form=st.sampled_from(Form),
    activations=st.sampled_from(Integer),
    weights=st.sampled_from(Integer),
    per_channel=st.booleans(),
    ranges=st.sampled_from(Ranges),
    excluded=st.lists(TEXT, max_size=2).map(tuple),
    block_size=st.integers(0, 128),
)
CANDIDATES = st.builds(
    CandidateResult,
    name=NAMES,
    status=st.sampled_from(Status),
    reason=TEXT,
    scheme=SCHEMES,
    by=st.sampled_from(["screening", "architecture"]) | TEXT,
    architectures=ARCHITECTURES,
    metric=or_none(FLOAT),
    keeps=or_none(FLOAT),
    p50_us=or_none(FLOAT),
    p90_us=or_none(FLOAT),
    speedup=or_none(FLOAT),
    size_bytes=or_none(COUNT),
    memory_bytes=or_none(COUNT),
    quantize_nodes=or_none(COUNT),
    dequantize_nodes=or_none(COUNT),
    took_s=FLOAT,
    on_front=st.booleans(),
    shipped=st.booleans(),
)
LAYERS = st.builds(
    LayerResult,
    name=TEXT,
    operator=TEXT,
    weights=COUNT,
    signal_to_noise_db=or_none(FLOAT),
    keeps=or_none(FLOAT),
    float_gain_us=or_none(FLOAT),
    excluded=st.booleans(),
    reason=TEXT,
)
SHIPPED = st.builds(
    ShippedVariant,
    name=NAMES,
    quantization=TEXT,
    metric=FLOAT,
    fp32_metric=FLOAT,
    keeps=FLOAT,
    size_bytes=COUNT,
    memory_bytes=COUNT,
    p50_us=FLOAT,
    p90_us=FLOAT,
    speedup=FLOAT,
    fp32_only_right=or_none(COUNT),
    variant_only_right=or_none(COUNT),
    p_value=or_none(FLOAT),
    classes=st.lists(st.builds(ClassDelta, label=TEXT, samples=COUNT, fp32=FLOAT, variant=FLOAT), max_size=3)
    | st.lists(st.builds(ClassDelta, label=TEXT, samples=COUNT, fp32=FLOAT, variant=FLOAT), min_size=21, max_size=22),
)
REPORTS = st.builds(
    SearchReport,
    model=TEXT,
    version=TEXT,
    source=TEXT,
    source_sha256=TEXT,
    created_at_ns=st.integers(-(2**63), 2**63 - 1),
    task=TEXT,
    metric=st.just("accuracy") | TEXT,
    higher_is_better=st.booleans(),
    max_drop=st.floats(0, 1),
    seed=st.integers(),
    samples=st.dictionaries(st.sampled_from(["calibration", "selection", "final"]) | TEXT, COUNT, max_size=4),
    labels=st.lists(TEXT, max_size=3),
    cpu=st.just("x86_64:avx2") | TEXT,
    cpu_name=TEXT,
    onnxruntime=TEXT,
    took_s=FLOAT,
    rewrites=st.lists(TEXT, max_size=2),
    candidates=st.lists(CANDIDATES, max_size=6),
    layers=st.lists(LAYERS, max_size=4) | st.lists(LAYERS, min_size=41, max_size=42),
    shipped=st.lists(SHIPPED, min_size=1, max_size=3),
    warnings=st.lists(TEXT, max_size=2),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a whole report takes minutes
)
@given(report=REPORTS)
def test_any_report_can_be_shown_in_every_way(report: SearchReport) -> None:
    page = render_html(report)
    reader = Reader(page)
    assert not reader.faults
    assert not reader.open
    assert reader.tags.count("script") == 1
    shown = [value for tag, _, value in reader.attributes if tag in ("circle", "rect", "line", "path", "svg", "i")]
    assert not any(word in value for value in shown for word in ("nan", "inf", "None"))
    for lines in tables(render_markdown(report)):
        assert len({columns(line) for line in lines}) == 1
    assert all("\n" not in line for line in summary_lines(report, Path("out")))
    assert encode_report(report)
    assert page == render_html(report)
