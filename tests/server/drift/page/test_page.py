"""The page: whole, by itself, and what a person asks of it in the order in which they ask."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from msgspec.structs import replace

from fleet_server.drift.findings import DriftReport
from fleet_server.drift.page import render_page
from fleet_server.drift.page.page import NOTHING
from tests.server.drift.page import examples
from tests.server.drift.page.reader import Reader

FETCHING = {"link", "img", "iframe", "object", "embed", "base", "form", "use", "image", "audio", "video"}


def page_of(reports: list[DriftReport]) -> bytes:
    return render_page(reports[0].model if reports else "digits", reports, examples.MADE)


@pytest.fixture(params=list(examples.SHAPES))
def reports(request: pytest.FixtureRequest) -> list[DriftReport]:
    return examples.SHAPES[request.param]()


def test_every_element_is_closed_in_order_and_every_link_has_its_target(reports: list[DriftReport]) -> None:
    reader = Reader(page_of(reports))
    assert not reader.faults
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert {target.removeprefix("#") for target in reader.values("href")} <= set(ids)


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(reports: list[DriftReport]) -> None:
    page = page_of(reports)
    reader = Reader(page)
    assert not FETCHING & set(reader.tags)
    assert not reader.values("src")
    assert all(value.startswith("#") for value in reader.values("href"))
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert b"url(" not in page
    assert b"@import" not in page
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == reader.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0]).digest()).decode()
    policy = reader.values("content", "meta")[0]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_picture_has_words_and_a_table_has_heads(reports: list[DriftReport]) -> None:
    page = page_of(reports).decode()
    for svg in re.findall(r"<svg[^>]*>", page):
        assert 'role="img"' in svg
        assert re.search(r'aria-label="[^"]{10,}"', svg)
    for table in re.findall(r"<table.*?</table>", page, re.S):
        assert "<caption" in table
        assert table.count('scope="col"') >= 2
        assert len(re.findall(r"<tr>", table)) - 1 == table.count('scope="row"')


def test_the_same_reports_make_the_same_bytes() -> None:
    assert page_of(examples.one_site()) == page_of(examples.one_site())


def test_a_hostile_name_is_shown_and_not_obeyed() -> None:
    page = page_of(examples.hostile())
    assert b"<script>alert" not in page
    assert "<script>alert('x')</script>\"&" in Reader(page).text
    assert not any(char in page for char in (b"\x1b", "\u202e".encode()))


def test_the_verdict_comes_first_with_its_severity_and_its_sentence() -> None:
    text = Reader(page_of(examples.one_site())).text
    text = text[text.index("drift high digits 1.4.0: brightness moved by 0.8") :]
    order = [
        "What was compared Devices against",
        "Signals 6 of 13 moved",
        "When it moved Each cell is 1 h",
        "Accuracy Estimated over the whole span: 0.91; expected: 0.97.",
        "What moved estimated_accuracy",
        "site=lisbon 14 of 22",
        "Signals that did not move, or could not be judged",
        "How to read this Drift",
        "How this was made",
    ]
    places = [text.find(said) for said in order]
    assert -1 not in places
    assert places == sorted(places)


def test_both_sides_and_what_was_left_unread_are_told() -> None:
    text = Reader(page_of(examples.one_site())).text
    assert "Devices against the reference." in text
    assert "compared with: the reference" in text
    assert "the training data that the bundle carries" in text
    assert "A sample was read: 200 of 10,000 devices." in text
    assert "Read from device hours: the span is whole hours." in text
    truncated = replace(examples.no_drift()[0], windows_truncated=True)
    assert "Not all of the span was read: 4,711 windows" in Reader(page_of([truncated])).text


def test_signals_that_moved_are_open_and_the_others_folded() -> None:
    page = page_of(examples.one_site()).decode()
    moved, others = page.split('id="v1-others"')
    assert moved.count('class="signal"') == 6
    assert "<details" not in moved
    assert others.count("<details") == 7


def test_numbers_of_a_signal_stand_with_their_own_p_values() -> None:
    text = Reader(page_of(examples.one_site())).text
    brightness = text[text.index("brightness moved by +0.8") :]
    for said in ("PSI population stability index", "JSD", "Hellinger", "KS", "W1", "shift", "rank shift"):
        assert said in brightness
    assert "since 2026-05-04 07:00 UTC; nineteen times in twenty between 06:20 and 07:20" in brightness
    assert "412 beyond the reference's range; 7 missing, NaN or infinite" in brightness


def test_too_little_data_is_never_told_as_no_drift() -> None:
    text = Reader(page_of(examples.not_enough())).text
    findings = text[: text.rindex("How to read this")]
    assert "no drift" not in findings
    assert findings.count("not enough evidence") >= 5
    assert "0 of 3 moved, 3 could not be judged" in findings
    assert "0 of 2" not in findings
    assert "There is no timeline" in findings


def test_a_version_without_reference_says_so_and_nothing_more() -> None:
    text = Reader(page_of(examples.no_reference())).text
    assert "its bundle ships no reference to compare with" in text
    assert "the bundle carries no reference" in text
    assert "When it moved" not in text


def test_without_any_telemetry_the_page_says_what_to_do() -> None:
    text = Reader(page_of([])).text
    assert "Nothing to compare." in text
    assert NOTHING in text


def test_several_versions_stand_in_one_file_the_worst_first() -> None:
    reports = examples.several_versions()
    text = Reader(page_of(reports)).text
    assert text.index("1.4.0 drift high") < text.index("1.3.0 no drift found") < text.index("1.4.0 not enough evidence")
    assert "compared with: the same hours before" in text
    assert text.count("What was compared") == 6  # a link and a heading each


def test_sixty_features_with_long_names_make_a_page_of_a_few_megabytes() -> None:
    page = page_of(examples.many_features())
    assert len(page) < 4_000_000
    text = Reader(page).text
    assert "3 of 61 moved" in text
    assert "Of 1,000 classes the 20 that differ most." in text
    assert "the other 980" in text
    assert "336 times are drawn 2 at a time" in text
