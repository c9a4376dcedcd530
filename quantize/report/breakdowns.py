"""The sections that take a model apart: class by class, layer by layer. Long ones fold what matters less."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.report import findings, words
from quantize.report.blocks import key, section
from quantize.report.layer_chart import NARROW, WIDE, highest_db, kind_of, layer_chart
from quantize.report.markup import Markup, element, joined, one_line
from quantize.report.tables import Row, bar_cell, difference_cell, name_cell, number_cell, table, text_cell
from quantize.search_report import ClassDelta, LayerResult, SearchReport

MOST_CLASSES_SHOWN = 20
MOST_LAYERS_SHOWN = 40
SENSITIVE_SHOWN = 10


def classes(report: SearchReport) -> Markup | None:
    """What each variant does to each class; None where answers have no classes."""
    parts: list[Markup] = []
    for one in findings.shipped(report):
        if one.variant.classes:
            parts += [
                element("h3", one.variant.name),
                element("p", findings.classes_in_words(one.variant.classes), class_="soft"),
                _class_table(one.variant.classes),
            ]
    if not parts:
        return None
    return section(
        "classes",
        "Class by class",
        "The share of each class's samples that is answered rightly. A bar to the left is a loss against fp32, in"
        " percentage points. With few samples in a class, one answer is many points.",
        *parts,
    )


def layers(report: SearchReport) -> Markup | None:
    """The sensitivity of every layer; None without layers."""
    if not report.layers:
        return None
    shown = _layer_table(report.layers)
    chart = None
    if len(report.layers) > MOST_LAYERS_SHOWN:
        chart = element("figure", layer_chart(report.layers, width=WIDE), layer_chart(report.layers, width=NARROW))
        noisiest = sorted(report.layers, key=_noise)[:SENSITIVE_SHOWN]
        shown = joined(
            element("h3", f"The {SENSITIVE_SHOWN} most sensitive"),
            _layer_table(noisiest),
            element("details", element("summary", f"All {len(report.layers):,} layers"), shown),
        )
    legend = [("column integer", "quantized"), ("column float", "left in float")]
    return section(
        "layers",
        "Layer by layer",
        f"{findings.layers_in_words(report)} The bar is the signal-to-noise ratio at the model's output with"
        " only that layer quantized: a short one is a sensitive layer. Beside it: what leaving it in float did to the"
        " time of a run when the search came to it.",
        element("ul", *[key(look, text) for look, text in legend], class_="key"),
        chart,
        shown,
    )


def _class_table(deltas: Sequence[ClassDelta]) -> Markup:
    if not findings.changed_classes(deltas):
        return element("details", element("summary", "Show them"), _classes_as_table(deltas))
    if len(deltas) <= MOST_CLASSES_SHOWN:
        return _classes_as_table(deltas)
    changed = findings.changed_classes(deltas)
    half = MOST_CLASSES_SHOWN // 2
    shown = changed if len(changed) <= MOST_CLASSES_SHOWN else changed[:half] + changed[-half:]
    everything = element("details", element("summary", f"All {len(deltas):,} classes"), _classes_as_table(deltas))
    return joined(_classes_as_table(shown) if shown else None, everything)


def _classes_as_table(deltas: Sequence[ClassDelta]) -> Markup:
    most = max(0.05, *(abs(one.variant - one.fp32) for one in deltas)) if deltas else 1.0
    rows: list[Row] = []
    for one in deltas:
        difference = one.variant - one.fp32
        rows.append(
            (
                [
                    name_cell(one.label),
                    difference_cell(words.points(difference), difference, difference / most),
                    number_cell(words.keeps(one.fp32), one.fp32),
                    number_cell(words.keeps(one.variant), one.variant),
                    number_cell(words.count(one.samples), one.samples),
                ],
                None,
            )
        )
    return table(("class", "points", "fp32", "variant", "samples"), rows, numbers=(2, 3, 4), sortable=True)


def _layer_table(shown: Sequence[LayerResult]) -> Markup:
    highest = highest_db(shown)
    rows: list[Row] = []
    for one in shown:
        value = words.known(one.signal_to_noise_db)
        where = _layer_badge(one)
        rows.append(
            (
                [
                    name_cell(one.name),
                    bar_cell(words.decibels(value), value, (value or 0.0) / highest, look=kind_of(one)),
                    text_cell(where, element("small", one_line(one.reason)) if one.reason else None),
                    number_cell(words.change(one.float_gain_us), one.float_gain_us),
                    number_cell(words.keeps(one.keeps), one.keeps),
                    text_cell(one_line(one.operator)),
                    number_cell(words.count(one.weights), one.weights),
                ],
                None,
            )
        )
    heads = ("layer", "signal to noise", "left in float", "in float, a run", "keeps, alone", "operator", "weights")
    return table(heads, rows, numbers=(3, 4, 6), sortable=True)


def _layer_badge(one: LayerResult) -> Markup | str:
    return element("span", "yes", class_="badge float") if one.excluded else ""


def _noise(layer: LayerResult) -> float:
    value = words.known(layer.signal_to_noise_db)
    return float("inf") if value is None else value
