"""The report's files in a bundle's folder."""

from __future__ import annotations

from pathlib import Path

from edge_agent.durable_files import replace_file
from quantize.report.markdown import render_markdown
from quantize.report.page import render_html
from quantize.report.summary import PAGE, REPORT_FOLDER
from quantize.search_report import SearchReport, encode_report

MARKDOWN, DATA = "report.md", "report.json"


def write_report(folder: Path, report: SearchReport) -> None:
    """Write FOLDER/report/report.html, report.md and report.json, each whole or not at all. Raises OSError."""
    contents = {
        PAGE: render_html(report),
        MARKDOWN: render_markdown(report).encode("utf-8", "replace"),
        DATA: encode_report(report),
    }
    target = folder / REPORT_FOLDER
    target.mkdir(exist_ok=True)
    for name, content in contents.items():
        replace_file(target / name, content)
