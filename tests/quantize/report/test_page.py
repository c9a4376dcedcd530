"""The HTML page: one whole file that says everything of the report and runs nothing of it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from quantize.report import render_html
from quantize.search_report import ClassDelta, SearchReport
from tests.quantize.report import reports

VOID = {"meta", "br", "hr"}
URL_ATTRIBUTES = {"src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction"}


class Reader(HTMLParser):
    """Collects tags, texts and attributes, and finds tags that are not closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.faults: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            self.faults.append(f"{tag} has an attribute twice")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(params=list(reports.SHAPES))
def report(request: pytest.FixtureRequest) -> SearchReport:
    return reports.SHAPES[request.param]()


def test_every_element_is_closed_in_order(report: SearchReport) -> None:
    reader = Reader(render_html(report))
    assert not reader.faults
    assert not reader.open


def test_nothing_is_loaded_from_elsewhere(report: SearchReport) -> None:
    page = render_html(report)
    reader = Reader(page)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "use", "image"} & set(reader.tags)
    assert all(value.startswith("#") for _, name, value in reader.attributes if name in URL_ATTRIBUTES)
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    styles = re.findall(rb"<style>(.*?)</style>", page, re.S) + re.findall(rb'style="(.*?)"', page)
    assert not any(b"url(" in style or b"@import" in style for style in styles)


def test_only_the_pages_own_script_may_run(report: SearchReport) -> None:
    page = render_html(report)
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == Reader(page).tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0]).digest()).decode()
    policy = next(value for tag, name, value in Reader(page).attributes if (tag, name) == ("meta", "content"))
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_hostile_name_is_shown_and_not_obeyed() -> None:
    page = render_html(reports.hostile())
    assert b"<script>alert" not in page
    assert "<script>alert('x')</script>\"&|`" in Reader(page).text
    assert not any(char in page for char in (b"\x00", b"\x1b", "\u202e".encode()))
    assert rb"\u202e" in page


def test_every_link_leads_to_a_section_that_is_there(report: SearchReport) -> None:
    reader = Reader(render_html(report))
    ids = {value for _, name, value in reader.attributes if name == "id"}
    assert {value[1:] for tag, name, value in reader.attributes if (tag, name) == ("a", "href")} == ids


def test_every_candidate_appears_with_its_outcome_and_reason() -> None:
    report = reports.with_failures()
    text = Reader(render_html(report)).text
    for number, one in enumerate(report.candidates, start=1):
        assert f"{number} {one.name} {one.scheme.quantization}" in text
        assert one.reason in text
    assert "failed for a reason" in text
    assert "interrupted for a reason" in text


@pytest.mark.parametrize("count", [2, 8, 9, 100])
def test_all_of_many_candidates_appear(count: int) -> None:
    report = reports.large(candidates=count + 1, layers=3, classes_=3)
    text = Reader(render_html(report)).text
    for number, one in enumerate(report.candidates, start=1):
        assert f" {number} {one.name} " in text


def test_every_warning_rewrite_layer_and_class_appears() -> None:
    report = replace(reports.large(), warnings=["beware of one", "beware of two"])
    text = Reader(render_html(report)).text
    assert all(one in text for one in [*report.warnings, *report.rewrites])
    assert all(one.name in text for one in report.layers)
    assert all(one.label in text for one in report.shipped[1].classes)


def test_a_figure_that_was_not_measured_is_said_to_be_so() -> None:
    report = reports.with_failures()
    row = Reader(render_html(report)).text.split("failed for a reason")[-1].split("interrupted-one")[0]
    assert row.count("not measured") == 6
    assert not re.search(r"\b(None|nan|inf)\b", Reader(render_html(report)).text)


def test_the_same_report_makes_the_same_bytes(report: SearchReport) -> None:
    assert render_html(report) == render_html(report)


def test_the_plot_is_drawn_for_wide_and_for_narrow_screens() -> None:
    classes = [
        value
        for tag, name, value in Reader(render_html(reports.int8_wins())).attributes
        if (tag, name) == ("svg", "class")
    ]
    assert classes == ["plot wide", "plot narrow"]


def test_a_lone_candidate_has_no_plot() -> None:
    report = reports.int8_loses()
    page = Reader(render_html(replace(report, candidates=report.candidates[:1])))
    assert "Too few were measured to draw" in page.text


def test_every_point_of_the_plot_lies_within_it() -> None:
    page = Reader(render_html(reports.large()))
    for name, limit in (("cx", 940.0), ("cy", 420.0)):
        places = [float(value) for tag, attribute, value in page.attributes if (tag, attribute) == ("circle", name)]
        assert len(places) > 100
        assert all(0 <= place <= limit for place in places)


def test_figures_that_no_axis_holds_are_not_drawn() -> None:
    base = reports.int8_wins()
    absurd = [
        reports.candidate(reports.U8S8, speedup=1.0, metric=1.7e308),
        reports.candidate(reports.U8S8, speedup=1.0, metric=-1.7e308),
        reports.candidate(reports.U8S8, speedup=1e-300, metric=0.9),
        reports.candidate(reports.U8S8, speedup=1.0, metric=float("nan")),
    ]
    drawn = re.findall(rb'class="point [^"]*"', render_html(base))
    page = render_html(replace(base, candidates=[*base.candidates, *absurd]))
    assert re.findall(rb'class="point [^"]*"', page) == drawn
    assert b'"nan' not in page


def test_one_hundred_candidates_and_two_hundred_layers_stay_a_small_file() -> None:
    assert len(render_html(reports.large())) < 600_000


def test_a_class_that_loses_draws_its_bar_to_the_left_and_a_gain_to_the_right() -> None:
    base = reports.int8_wins()
    deltas = [
        ClassDelta(label="loser", samples=10, fp32=1.0, variant=0.5),
        ClassDelta(label="winner", samples=10, fp32=0.5, variant=0.75),
    ]
    report = replace(base, shipped=[base.shipped[0], replace(base.shipped[1], classes=deltas)])
    bars = re.findall(r'<i class="(less|more)" style="left:([\d.]+)%;width:([\d.]+)%"', render_html(report).decode())
    assert bars == [("less", "0.0", "50.0"), ("more", "50.0", "25.0")]
