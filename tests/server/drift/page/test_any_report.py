"""Whatever a report holds, the page is whole and the terminal gets a line."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fleet_server.cli.drift_text import signal_row
from fleet_server.drift.findings import (
    Distribution,
    DriftReport,
    Effect,
    Population,
    Segment,
    Severity,
    SignalFinding,
    SignalKind,
    TimeCell,
    Verdict,
)
from fleet_server.drift.page import Making, render_page
from fleet_server.drift.page.heat_map import times_of
from tests.server.drift.page.reader import Reader

TEXT = st.text(max_size=12) | st.sampled_from(["</script>", "<b>", "\x00", "\u202e", "]]>", "&amp;", "--", "a" * 300])
FLOAT = st.floats() | st.floats(0, 1)
COUNT = st.integers(0, 10**12)
TIME = st.integers(0, 2**63 - 1) | st.integers(0, 50).map(lambda hour: 1_777_900_800 * 10**9 + hour * 3600 * 10**9)


def or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


EFFECTS = st.builds(
    Effect,
    psi=or_none(FLOAT),
    psi_p_value=or_none(FLOAT),
    jsd=or_none(FLOAT),
    hellinger=or_none(FLOAT),
    ks_distance=or_none(FLOAT),
    wasserstein_1=or_none(FLOAT),
    shift_sd=or_none(FLOAT),
    shift_rank=or_none(FLOAT),
    shift_interval=or_none(st.tuples(FLOAT, FLOAT)),
    mmd=or_none(FLOAT),
)
DISTRIBUTIONS = st.builds(
    Distribution,
    seen=st.lists(FLOAT, max_size=4),
    expected=st.lists(FLOAT, max_size=4),
    edges=st.lists(FLOAT, max_size=5) | st.lists(FLOAT, min_size=2, max_size=5).map(sorted),
    labels=st.lists(TEXT, max_size=4),
) | st.integers(1, 4).flatmap(
    lambda cells: st.builds(
        Distribution,
        seen=st.lists(st.floats(0, 1), min_size=cells, max_size=cells),
        expected=st.lists(st.floats(0, 1), min_size=cells, max_size=cells),
        edges=st.lists(st.floats(-1e300, 1e300), min_size=cells + 1, max_size=cells + 1).map(sorted),
    )
)
SIGNALS = st.builds(
    SignalFinding,
    signal=TEXT,
    kind=st.sampled_from(SignalKind),
    verdict=st.sampled_from(Verdict),
    severity=st.sampled_from(Severity),
    sentence=TEXT,
    devices=COUNT,
    devices_moved=COUNT,
    values=COUNT,
    beyond_reference=COUNT,
    p_value=or_none(FLOAT),
    adjusted_p_value=or_none(FLOAT),
    e_value=or_none(FLOAT),
    method=TEXT,
    effect=or_none(EFFECTS),
    onset_ns=or_none(TIME),
    onset_earliest_ns=or_none(TIME),
    onset_latest_ns=or_none(TIME),
    segments=st.lists(
        st.builds(
            Segment,
            by=TEXT,
            value=TEXT,
            devices=COUNT,
            devices_moved=COUNT,
            p_value=FLOAT,
            e_value=FLOAT,
            shift_sd=or_none(FLOAT),
        ),
        max_size=2,
    ),
    distribution=or_none(DISTRIBUTIONS),
    timeline=st.lists(
        st.builds(TimeCell, start_ns=TIME, devices=COUNT, size=FLOAT, p_value=or_none(FLOAT)), max_size=4
    ),
)
POPULATIONS = st.builds(
    Population,
    model=TEXT,
    version=TEXT,
    is_reference=st.booleans(),
    selector=TEXT,
    device=TEXT,
    start_ns=TIME,
    end_ns=TIME,
    same_hours=st.booleans(),
)
REPORTS = st.builds(
    DriftReport,
    model=TEXT,
    version=TEXT,
    start_ns=TIME,
    end_ns=TIME,
    windows=COUNT,
    windows_truncated=st.booleans(),
    alpha=st.floats(0.001, 0.5),
    verdict=st.sampled_from(Verdict),
    severity=st.sampled_from(Severity),
    sentence=TEXT,
    seen=POPULATIONS,
    expected=POPULATIONS,
    estimated_accuracy=or_none(FLOAT),
    expected_accuracy=or_none(FLOAT),
    signals=st.lists(SIGNALS, max_size=4),
    pairing=TEXT,
    read_from=TEXT,
    devices_sampled_of=COUNT,
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a whole report takes minutes
)
@given(reports=st.lists(REPORTS, max_size=2), model=TEXT, made_at_ns=st.integers(-(2**63), 2**63 - 1))
def test_any_report_makes_a_whole_page(reports: list[DriftReport], model: str, made_at_ns: int) -> None:
    page = render_page(model, reports, Making(made_at_ns=made_at_ns, server=model, edgefleet="1", query=model))
    reader = Reader(page)
    assert not reader.faults
    assert reader.tags.count("script") == 1
    drawn = [
        value
        for tag, name, value in reader.attributes
        if tag in ("rect", "line", "path", "i", "span") and name not in ("class", "aria-hidden")
    ]
    assert not [value for value in drawn if re.search(r"nan|inf|None|--", value)]
    assert not [value for value in reader.values("data-v") if re.search(r"nan|inf", value)]
    assert page == render_page(model, reports, Making(made_at_ns=made_at_ns, server=model, edgefleet="1", query=model))
    for report in reports:
        for signal in report.signals:
            assert all("\n" not in text for text in signal_row(report, signal, times_of(report, most=32)))
