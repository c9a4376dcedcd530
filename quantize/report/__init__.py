"""The report of a search, for people: a page, Markdown, and what the command prints."""

from quantize.report.markdown import render_markdown
from quantize.report.page import render_html
from quantize.report.summary import summary_lines
from quantize.report.writing import write_report

__all__ = ["render_html", "render_markdown", "summary_lines", "write_report"]
