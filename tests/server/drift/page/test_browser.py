"""The pages in a real Chromium: no complaint, nothing fetched, every section there to see, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_server.drift.page import render_page
from tests.server.drift.page import examples
from tests.server.drift.page.browser import Browser, chromium

PHONE, DESK = 390, 1280
MIN_CONTRAST = 4.5
"""WCAG 2.1, level AA, for text."""

CONTRASTS = """
(() => {
  const light = (channel) => channel <= 0.03928 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * light(r / 255) + 0.7152 * light(g / 255) + 0.0722 * light(b / 255);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const worst = {};
  const texts = "p, a, th, td, span, dt, dd, li, figcaption, summary, h1, h2, h3, h4, b";
  for (const one of document.querySelectorAll(texts)) {
    if (!one.textContent.trim() || one.closest("svg") || !one.getClientRects().length) continue;
    const [a, b] = [luminance(parse(getComputedStyle(one).color)), luminance(behind(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = one.tagName + "." + one.className;
    if (contrast < (worst[name] ?? 99)) worst[name] = contrast;
  }
  return worst;
})()
"""
HIDDEN_SECTIONS = """
[...document.querySelectorAll("section")].filter((one) => {
  const box = one.getBoundingClientRect();
  return !one.checkVisibility({opacityProperty: true, visibilityProperty: true}) || box.width < 200 || box.height < 40;
}).map((one) => one.id)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def written(folder: Path, name: str) -> Path:
    reports = examples.SHAPES[name]()
    file = folder / f"{name}.html"
    file.write_bytes(render_page(reports[0].model if reports else "digits", reports, examples.MADE))
    return file


@pytest.mark.parametrize("name", examples.SHAPES)
def test_a_page_opens_without_complaint_and_shows_every_section(browser: Browser, tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name)
    for width, dark in ((DESK, False), (PHONE, True)):
        assert browser.open(file, width=width, dark=dark) == []
        assert browser.run("document.querySelectorAll('section').length") >= 2
        assert browser.run(HIDDEN_SECTIONS) == []
        assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_enough_contrast(browser: Browser, tmp_path: Path, dark: bool) -> None:
    browser.open(written(tmp_path, "several_versions"), dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = browser.run(CONTRASTS)
    assert len(found) > 20
    assert {name: contrast for name, contrast in found.items() if contrast < MIN_CONTRAST} == {}


def test_a_column_sorts_by_its_numbers_and_missing_ones_last(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, "one_site"))
    column = "[...document.querySelectorAll('#v1-signals tbody tr')].map((row) => row.cells[3].dataset.v)"
    heads = "document.querySelectorAll('#v1-signals th button')"
    browser.run(f"{heads}[3].click()")
    values = browser.run(column)
    known = [float(value) for value in values if value]
    assert known == sorted(known)
    assert values[len(known) :] == [""] * (len(values) - len(known))
    browser.run(f"{heads}[3].click()")
    assert [float(value) for value in browser.run(column) if value] == known[::-1]
    assert browser.run("document.querySelectorAll('#v1-signals th')[3].getAttribute('aria-sort')") == "descending"


def test_a_link_to_a_folded_signal_unfolds_it(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, "one_site"))
    folded = "document.querySelector('#v1-others details')"
    assert browser.run(f"{folded}.open") is False
    changed = "new Promise((done) => addEventListener('hashchange', () => setTimeout(done, 0), {once: true}))"
    go = f"location.hash = {folded}.id"
    browser.run(f"(() => {{ const gone = {changed}; {go}; return gone; }})()")
    assert browser.run(f"{folded}.open") is True


def test_the_browser_reports_what_a_page_does_wrong(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "wrong.html"
    file.write_text("<!doctype html><img src='missing.png'><script>console.error('no'); missing()</script>")
    complaints = " ".join(browser.open(file))
    assert "missing.png" in complaints
    assert "is not defined" in complaints


def test_a_printed_page_shows_what_is_folded_on_the_screen(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, "no_drift"))
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
