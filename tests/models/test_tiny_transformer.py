"""The committed language model: its tokenizer, its parts, its bundle, and what the model card says of them."""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import Agent
from edge_agent.control.golden import check_golden, load_golden
from edge_agent.runtime.session import Model
from edge_agent.telemetry.features import check_extractor, extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.tiny_transformer.catalogues import PACKAGES, Phrase, check, cleaned, messages, phrases
from models.tiny_transformer.data import (
    CALIBRATION,
    ELSEWHERE,
    FILE,
    FINAL,
    INPUT,
    KEPT,
    LABELS,
    REFERENCE,
    SELECTION,
    TRAIN,
    TRAINING_SHA256,
    divided,
    kept,
)
from models.tiny_transformer.recipe import HERE, RECIPE, watched
from models.tiny_transformer.scores import answers, confusions, interval
from models.tiny_transformer.tokenizer import MAX_BYTES, MAX_CHARACTERS, PADDING, readable, tokenize

MAX_FILE_BYTES = 1_000_000
TELLING_PHRASES = {
    "de": "Bitte überprüfen Sie das Fenster im zweiten Stock",
    "en": "Please check the window on the second floor",
    "es": "Por favor compruebe la ventana del segundo piso",
    "fi": "Tarkista toisen kerroksen ikkuna",
    "fr": "Veuillez vérifier la fenêtre du deuxième étage",
    "hu": "Kérjük, ellenőrizze a második emeleti ablakot",
    "pl": "Proszę sprawdzić okno na drugim piętrze",
    "ru": "Пожалуйста, проверьте окно на втором этаже",
}


def first_variant() -> Path:
    return file_path(RECIPE.bundle, read_manifest(RECIPE.bundle).variants[0].file.sha256)


def accuracy(part: str) -> float:
    return float((answers(first_variant().read_bytes(), kept(part)) == kept(part).labels).mean())


def on_card(part: str) -> float:
    """The network's accuracy on a part in the model card's table."""
    (row,) = re.findall(r"^\| network \|(.+)\|$", (HERE / "README.md").read_text("utf-8"), re.MULTILINE)
    return float(row.split("|")[(FINAL, ELSEWHERE).index(part)].split()[0])


def mo_file(translations: dict[str, str]) -> bytes:
    """A GNU gettext `.mo` file of messages and their translations."""
    texts = [text.encode() for pair in sorted(translations.items()) for text in pair]
    offset, places = 28 + 8 * len(texts), []
    for text in texts:
        places.append(struct.pack("<2I", len(text), offset))
        offset += len(text) + 1
    count = len(translations)
    header = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return header + b"".join(places[0::2] + places[1::2]) + b"".join(text + b"\0" for text in texts)


@pytest.mark.parametrize(
    ("phrase", "content"),
    [
        ("Hallo", "Hallo"),
        ("  two \t\n words\u00a0here ", "two words here"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x07 \x1bc", "ab c"),
        ("", ""),
        (" \x00 ", ""),
        ("\ud800x", "?x"),
        ("x" * 65, "x" * 64),
        ("x" * 63 + "é", "x" * 63),
        ("x" * 62 + "é", "x" * 62 + "é"),
        ("x" * 63 + " y", "x" * 63),
        ("ы" * 40, "ы" * 32),
    ],
)
def test_a_phrase_becomes_its_bytes_composed_and_cut_between_characters(phrase: str, content: str) -> None:
    expected = content.encode().ljust(MAX_BYTES, b"\0")

    assert tokenize([phrase]).astype(np.uint8).tobytes() == expected
    assert readable(tokenize([phrase])) == [content]


def test_tokens_are_the_numbers_that_the_network_was_trained_with() -> None:
    tokens = tokenize(["Fuß", "Ω"])

    assert tokens.dtype == np.int64
    assert tokens.shape == (2, MAX_BYTES)
    assert tokens[0, :6].tolist() == [70, 117, 195, 159, 0, 0]
    assert tokens[1, :3].tolist() == [206, 169, 0]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_bytes_then_padding_and_reading_them_back_gives_the_same_tokens(phrase: str) -> None:
    tokens = tokenize([phrase])
    length = int((tokens != PADDING).sum())

    assert (tokens[0, :length] != PADDING).all()
    assert 0 <= tokens.min() <= tokens.max() < 256
    np.testing.assert_array_equal(tokenize(readable(tokens)), tokens)


def test_a_long_text_is_read_only_at_its_start() -> None:
    assert readable(tokenize([" " * MAX_CHARACTERS + "never read"])) == [""]


def test_a_message_is_cleaned_of_what_is_no_language() -> None:
    assert cleaned("<b>Save</b> the “%(name)s” page now!") == "Save the page now"
    assert cleaned("See {url} or https://example.org/x, then write setup.py") == "See or then write"
    assert cleaned("Fichier :file:`conf.py` introuvable, ``%s``") == "Fichier introuvable"


def test_a_catalogue_gives_each_message_with_all_its_plural_forms() -> None:
    content = mo_file({"": "Language: de\n", "menu\x04Open": "Öffnen", "%d day\0%d days": "%d Tag\0%d Tage"})

    assert dict(messages(content)) == {"Open": ["Öffnen"], "%d day": ["%d Tag", "%d Tage"]}
    with pytest.raises(ValueError, match=r"not a little-endian \.mo file"):
        list(messages(b"\x95\x04\x12\xde" + content[4:]))


def test_a_package_gives_its_phrases_in_the_twenty_languages_only(tmp_path: Path) -> None:
    wheel = tmp_path / "example-1.0-py3-none-any.whl"
    source = "The connection was closed"
    with zipfile.ZipFile(wheel, "w") as archive:
        for locale, text in (("de", "Die Verbindung wurde beendet"), ("ja", "接続が閉じられました"), ("fr", source)):
            archive.writestr(f"example/locale/{locale}/LC_MESSAGES/django.mo", mo_file({source: text, "No": "Nein"}))

    assert phrases(wheel) == [  # short ones and those left in English are not among them
        Phrase(source=source, language="de", text="Die Verbindung wurde beendet"),
        Phrase(source=source, language="en", text=source),
    ]


def test_a_package_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "Django-5.2-py3-none-any.whl"
    wheel.write_bytes(b"another")

    with pytest.raises(RuntimeError, match="nothing is trained on it"):
        check(wheel, PACKAGES[0])


def test_no_message_is_in_two_parts_and_no_text_in_two_languages() -> None:
    ours = [
        Phrase(source=f"Message number {n // 3}", language=language, text=f"{language} text {n // 3 % 211}")
        for n in range(900)
        for language in ("de", "fr")
    ] + [Phrase(source="Message number 7", language=language, text="Administration") for language in ("de", "fr")]
    theirs = [Phrase(source="x", language="de", text=text) for text in ("de text 1", "DE TEXT 2", "nur hier")]

    parts = divided(ours, theirs)

    distinct = [parts[name] for name in (TRAIN, CALIBRATION, SELECTION, FINAL, ELSEWHERE)]
    assert all(distinct)
    texts = [phrase.text.casefold() for part in distinct for phrase in part]
    assert len(texts) == len(set(texts)) == 2 * 211 + 1
    assert "administration" not in texts
    assert [phrase.text for phrase in parts[ELSEWHERE]] == ["nur hier"]
    assert set(parts[REFERENCE]) <= set(parts[TRAIN])


def test_all_translations_of_a_message_are_in_the_same_part() -> None:
    ours = [
        Phrase(source=f"Message number {n}", language=language, text=f"{language} text {n}")
        for n in range(300)
        for language in ("de", "en", "fr")
    ]

    parts = divided(ours, [])

    sources = [{phrase.source for phrase in parts[name]} for name in (TRAIN, CALIBRATION, SELECTION, FINAL)]
    assert sum(map(len, sources)) == 300
    assert all(len(sources[0]) > len(other) > 0 for other in sources[1:])


def test_the_committed_parts_share_no_text_and_hold_every_language() -> None:
    parts = {name: kept(name) for name in KEPT}
    texts = {name: {text.casefold() for text in readable(part.inputs[INPUT])} for name, part in parts.items()}

    for name, part in parts.items():
        assert part.inputs[INPUT].shape == (len(part), MAX_BYTES)
        assert set(np.asarray(part.labels).tolist()) == set(range(len(LABELS)))
        # two phrases may differ only behind the cut
        shared = set.union(set(), *(texts[name] & texts[other] for other in KEPT if other != name))
        assert all(len(text.encode()) >= MAX_BYTES - 4 for text in shared)
        assert len(shared) < 0.005 * len(part)


def test_the_committed_files_are_small_and_carry_the_licences_of_their_text() -> None:
    assert FILE.stat().st_size < MAX_FILE_BYTES
    assert RECIPE.fp32.stat().st_size < MAX_FILE_BYTES
    for project in ("django", "wagtail", "sphinx"):
        assert "Redistribution" in (HERE / "licences" / f"{project}.txt").read_text("utf-8")


def test_every_file_of_the_bundle_has_its_digest_and_no_other_lies_among_them() -> None:
    manifest = read_manifest(RECIPE.bundle)

    for artifact in manifest.artifacts():
        content = file_path(RECIPE.bundle, artifact.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
    files = {path.name for path in (RECIPE.bundle / "files").iterdir()}
    assert files == {artifact.sha256 for artifact in manifest.artifacts()}


def test_the_manifest_says_all_a_device_and_a_server_need() -> None:
    manifest = read_manifest(RECIPE.bundle)

    assert (manifest.model, manifest.version, manifest.task) == ("tiny-transformer", "1.0.0", "classification")
    assert manifest.labels == list(LABELS)
    assert manifest.inputs == [TensorSpec(name="tokens", datatype="INT64", shape=[-1, MAX_BYTES])]
    assert manifest.outputs == [TensorSpec(name="probabilities", datatype="FP32", shape=[-1, len(LABELS)])]
    assert sum(manifest.classes) == len(kept(CALIBRATION)) + len(kept(SELECTION))
    assert manifest.lineage.training_data_sha256 == TRAINING_SHA256
    assert "BSD" in manifest.licence


def test_the_watched_bytes_are_those_of_the_training_phrases_and_tell_scripts_and_cut_texts() -> None:
    manifest = read_manifest(RECIPE.bundle)
    reference = kept(REFERENCE)

    assert [feature.name for feature in manifest.features] == [feature.name for feature in watched()]
    for feature in manifest.features:
        check_extractor(feature, manifest.inputs)
        sketch = BinSketch(feature.edges)
        sketch.record_many(extract(feature, reference.inputs))
        assert sketch.bins.tolist() == feature.counts

    middle = next(feature for feature in manifest.features if feature.name == "byte_16")
    usual = np.array(middle.counts) / sum(middle.counts)
    for others in (["kurz"] * 50, [TELLING_PHRASES["ru"]] * 50):
        sketch = BinSketch(middle.edges)
        sketch.record_many(extract(middle, {INPUT: tokenize(others)}))
        assert np.abs(sketch.bins / 50 - usual).sum() > 0.5


def test_a_device_accepts_the_golden_vectors_of_every_variant() -> None:
    manifest = read_manifest(RECIPE.bundle)

    for variant in manifest.variants:
        inputs, expected = load_golden(file_path(RECIPE.bundle, manifest.golden.sha256), variant.name)
        check_golden(Model.load(file_path(RECIPE.bundle, variant.file.sha256)), inputs, expected, variant)


def test_the_bundle_is_as_accurate_as_the_card_and_the_manifest_say() -> None:
    measured = accuracy(FINAL)

    assert measured == pytest.approx(on_card(FINAL), abs=0.005)
    assert measured == pytest.approx(read_manifest(RECIPE.bundle).variants[0].expected["accuracy"], abs=0.005)


def test_another_projects_phrases_are_read_as_well_as_the_card_says() -> None:
    assert accuracy(ELSEWHERE) == pytest.approx(on_card(ELSEWHERE), abs=0.005)


def test_padding_has_no_say_in_an_answer() -> None:
    network = Model.load(RECIPE.fp32)
    tokens = tokenize(["Das Fenster ist offen", "x" * MAX_BYTES])

    together = network.run({INPUT: tokens})["probabilities"]

    np.testing.assert_allclose(together[:1], network.run({INPUT: tokens[:1]})["probabilities"], atol=1e-5)
    assert together.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(network.run({INPUT: tokenize([""])})["probabilities"]).all()


def test_phrases_are_classified_through_an_agent() -> None:
    with Agent(models={"tiny-transformer": first_variant()}) as agent:
        found = {
            code: LABELS[
                int(agent.infer("tiny-transformer", {INPUT: tokenize([text])}).outputs["probabilities"].argmax())
            ]
            for code, text in TELLING_PHRASES.items()
        }

    assert found == {code: code for code in TELLING_PHRASES}


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = interval(90, 100)

    assert (low, high) == pytest.approx((0.82563, 0.94477), abs=1e-5)
    assert interval(5, 5)[1] == pytest.approx(1.0)


def test_a_confused_pair_counts_both_ways_round() -> None:
    da, nb, fr = (LABELS.index(code) for code in ("da", "nb", "fr"))

    pairs = confusions(np.array([da, nb, nb, fr]), np.array([nb, da, nb, da]))

    assert pairs == [("da/nb", 2), ("da/fr", 1)]
