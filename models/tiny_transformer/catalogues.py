"""Real phrases in twenty languages: the translated messages of open-source projects, read from their Python packages.

Each package is one exact file, named by version and SHA-256, that `pip` fetches; another file of that name is refused.
A catalogue is a GNU gettext `.mo` file, the compiled form in which a package carries its translations. A translation
and its English source share a `source`, by which `data.py` keeps the languages' versions of one message together.

All three projects are under BSD licences, which `licences/` holds.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.tiny_transformer.tokenizer import normalised

LANGUAGES = {
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "nb": "Norwegian Bokmål",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv": "Swedish",
    "uk": "Ukrainian",
}
"""The classes, in this order, by ISO 639-1 code."""

MIN_LETTERS = 12
MAX_CATALOGUE_BYTES = 4 * 1024**2

_SOURCE_LANGUAGE = "en"
_LOCALES = {code: code for code in LANGUAGES if code != _SOURCE_LANGUAGE} | {
    "cs_CZ": "cs",
    "es_ES": "es",
    "nb_NO": "nb",
    "nl_NL": "nl",
    "pt_BR": "pt",
    "pt_PT": "pt",
    "sl_SI": "sl",
    "uk_UA": "uk",
}
_CATALOGUE = re.compile(r"/([A-Za-z_]+)/LC_MESSAGES/[a-z]+\.mo$")
_NOT_LANGUAGE = re.compile(
    r"<[^<>]*>"  # markup
    r"|%\([^)]*\)[#0\- +]*[\d.]*[a-zA-Z]|%[sdrif]"  # what printf fills in
    r"|\{[^{}]*\}"  # what str.format fills in
    r"|\w+://\S+|\S+@\S+|[\w./\\-]+\.(?:py|html|txt|css|js|rst|csv)\b"  # addresses and files
    r"|:[a-z:]+:`[^`]*`|``[^`]*``|`[^`]*`"  # reStructuredText
    r"|&[a-z]+;|[*_|#`]+"
)
_QUOTES = "\"'“”„«»\u2018\u2019"
_EMPTY_QUOTES = re.compile(rf"[{_QUOTES}]\s*[{_QUOTES}]|\(\s*\)")
_OUTSIDE = " .,:;!?()[]-\u2013…/\"'“”„«»"
_MAGIC, _CONTEXT, _FORMS = 0x950412DE, "\x04", "\x00"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file of the package index, with a wheel's name and digest."""

    project: str
    version: str
    sha256: str
    licence: str


PACKAGES = (
    Package(
        project="Django",
        version="5.2",
        sha256="91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
        licence="BSD-3-Clause",
    ),
    Package(
        project="wagtail",
        version="6.4",
        sha256="3d89b93079711fd1703be057a06cf5d34303a20ee31b2f51384954e21fff38ce",
        licence="BSD-3-Clause",
    ),
)
"""Where training, calibration, selection and final phrases come from."""

ELSEWHERE = Package(
    project="sphinx",
    version="8.1.3",
    sha256="09719015511837b76bf6e03e42eb7595ac8c2e41eeb9c29c5b755c6b677992a2",
    licence="BSD-2-Clause",
)
"""A project of other writers about another subject: nothing is trained on it."""


@dataclass(frozen=True, kw_only=True, order=True)
class Phrase:
    """A phrase, its language's code, and the English message that it translates."""

    source: str
    language: str
    text: str


def fetch(package: Package, folder: Path) -> Path:
    """The package's wheel in `folder`, by pip. Raises RuntimeError when it is another file than the pinned one."""
    requirement = f"{package.project}=={package.version}"
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        subprocess.run((*command, "--dest", downloads, requirement), check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(downloads).iterdir()
        check(wheel, package)
        return wheel.rename(folder / wheel.name)


def check(wheel: Path, package: Package) -> None:
    """Raise RuntimeError when the file is another than the pinned one."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise RuntimeError(
            f"{wheel.name} has the SHA-256 {digest}, and {package.project} {package.version} was pinned as "
            f"{package.sha256}: nothing is trained on it"
        )


def phrases(wheel: Path) -> list[Phrase]:
    """Every phrase of the wheel's catalogues in LANGUAGES, cleaned, each once, in a fixed order."""
    found: set[Phrase] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            match = _CATALOGUE.search(name)
            language = _LOCALES.get(match[1]) if match else None
            if language is None or archive.getinfo(name).file_size > MAX_CATALOGUE_BYTES:
                continue
            for message, translations in messages(archive.read(name)):
                source = cleaned(message)
                found.add(Phrase(source=source, language=_SOURCE_LANGUAGE, text=source))
                found |= {
                    Phrase(source=source, language=language, text=text)
                    for text in map(cleaned, translations)
                    if text.casefold() != source.casefold()  # left in English
                }
    return sorted(phrase for phrase in found if sum(map(str.isalpha, phrase.text)) >= MIN_LETTERS)


def messages(catalogue: bytes) -> Iterator[tuple[str, list[str]]]:
    """Each English message of a `.mo` file with its translations, one per plural form.

    The layout is that of the GNU gettext manual, "The Format of GNU MO Files". Raises ValueError for another file.
    """
    if len(catalogue) < 20 or struct.unpack_from("<I", catalogue)[0] != _MAGIC:
        raise ValueError("not a little-endian .mo file")
    count, sources, translations = struct.unpack_from("<3I", catalogue, 8)
    for index in range(count):
        message = _string(catalogue, sources + 8 * index).rpartition(_CONTEXT)[2].split(_FORMS)[0]
        if message:  # the empty message is the catalogue's header
            yield message, [text for text in _string(catalogue, translations + 8 * index).split(_FORMS) if text]


def cleaned(message: str) -> str:
    """A message without what is no language: markup, what a program fills in, addresses, file names."""
    return normalised(_EMPTY_QUOTES.sub(" ", _NOT_LANGUAGE.sub(" ", message))).strip(_OUTSIDE)


def _string(catalogue: bytes, place: int) -> str:
    length, offset = struct.unpack_from("<2I", catalogue, place)
    return catalogue[offset : offset + length].decode("utf-8")
