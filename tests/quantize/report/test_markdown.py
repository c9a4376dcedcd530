"""The report as Markdown, on a terminal and as files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from quantize.report import render_html, render_markdown, summary_lines, write_report
from quantize.search_report import SearchReport, read_report
from tests.quantize.report import reports


@pytest.fixture(params=list(reports.SHAPES))
def report(request: pytest.FixtureRequest) -> SearchReport:
    return reports.SHAPES[request.param]()


def tables(text: str) -> list[list[str]]:
    """The lines of each table."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def test_every_row_of_a_table_has_as_many_columns_as_its_head(report: SearchReport) -> None:
    found = tables(render_markdown(report))
    assert len(found) >= 3
    for lines in found:
        assert len({columns(line) for line in lines}) == 1


def test_every_candidate_layer_and_warning_appears_in_markdown() -> None:
    report = replace(reports.large(), warnings=["beware"])
    text = render_markdown(report).replace("\\", "")
    assert "**Warning:** beware" in text
    assert all(f"| {number} | {one.name} |" in text for number, one in enumerate(report.candidates, start=1))
    assert all(one.name in text for one in report.layers)


def test_hostile_names_are_no_markup_in_markdown() -> None:
    text = render_markdown(reports.hostile())
    assert not re.search(r"(?<!\\)<script", text)
    assert not re.search(r"(?<!\\)\[a", text)
    assert not any(ord(char) < 32 and char != "\n" for char in text)


def test_the_summary_tells_the_outcome_the_figures_the_warnings_and_where_the_report_is() -> None:
    report = replace(reports.int8_wins(), warnings=["beware"])
    lines = summary_lines(report, Path("out"))
    assert lines[0].startswith("digits 1.1.0: int8 in QDQ form runs 1.72 times as fast")
    row = next(line for line in lines if line.startswith("int8-qdq-u8s8"))
    assert " ".join(row.split()) == (
        "int8-qdq-u8s8 x86_64 0.9781 99.8 % 58.1 µs 75.6 µs 1.72\N{MULTIPLICATION SIGN} 108 kB 1.90 MB"
    )
    assert "warning: beware" in lines
    assert any("5 candidates tried, 1 lost more than 0.5 % of the metric" in line for line in lines)
    assert f"report: {Path('out/report/report.html')}" in lines


def test_the_summary_cannot_move_the_cursor_of_a_terminal() -> None:
    lines = summary_lines(reports.hostile(), Path("out\x1b[2J"))
    assert not any(ord(char) < 32 for line in lines for char in line)


def test_the_columns_of_the_summary_stand_in_line(report: SearchReport) -> None:
    lines = summary_lines(report, Path("out"))
    rows = lines[2 : lines.index("", 2)]
    assert len({len(row) for row in rows}) == 1


def test_writing_makes_a_page_markdown_and_the_report_itself(tmp_path: Path) -> None:
    report = reports.int8_wins()
    write_report(tmp_path, report)
    assert read_report(tmp_path / "report" / "report.json") == report
    assert (tmp_path / "report" / "report.html").read_bytes() == render_html(report)
    assert (tmp_path / "report" / "report.md").read_text() == render_markdown(report)
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_writing_again_replaces_the_files(tmp_path: Path) -> None:
    write_report(tmp_path, reports.int8_loses())
    write_report(tmp_path, reports.int8_wins())
    assert read_report(tmp_path / "report" / "report.json") == reports.int8_wins()
