"""A phrase as the model takes it: the bytes of its UTF-8 text. The same code runs in training and on a device.

1. At most the first MAX_CHARACTERS are read, so that a long text costs no more than a long phrase.
2. Control characters are left out, white space among them excepted; letters and their accents are composed (NFC).
3. Runs of white space become one space, none at the ends.
4. The UTF-8 bytes are cut at MAX_BYTES, at the end of a character, never inside it.
5. What remains is filled up with PADDING, a byte that no text holds after step 2.

There is no vocabulary to ship or to lose: a token is a byte, and any text of any script has one. Upper and lower case
stay apart. Needs numpy and the standard library only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 64
MAX_CHARACTERS = 1024
PADDING = 0
VOCABULARY = 256


def tokenize(phrases: Sequence[str]) -> NDArray[np.int64]:
    """The tokens `[n, MAX_BYTES]` of `n` phrases, ready for the input `tokens`.

    A phrase without a visible character is all padding, for which the model's answer means nothing: do not ask it.
    A lone surrogate, which UTF-8 cannot write, becomes a question mark.
    """
    tokens = np.full((len(phrases), MAX_BYTES), PADDING, dtype=np.int64)
    for row, phrase in zip(tokens, phrases, strict=True):
        content = np.frombuffer(_content(phrase), dtype=np.uint8)
        row[: len(content)] = content
    return tokens


def readable(tokens: NDArray[np.integer]) -> list[str]:
    """The text that `tokens` `[n, MAX_BYTES]` hold, without padding: what `tokenize` kept of the phrases."""
    return [row.astype(np.uint8).tobytes().rstrip(bytes([PADDING])).decode("utf-8") for row in tokens]


def normalised(phrase: str) -> str:
    """The phrase after steps 1 to 3: two phrases that look alike to a reader are one."""
    read = phrase[:MAX_CHARACTERS]
    visible = "".join(letter for letter in read if letter.isspace() or unicodedata.category(letter) != "Cc")
    return " ".join(unicodedata.normalize("NFC", visible).split())


def _content(phrase: str) -> bytes:
    encoded = normalised(phrase).encode("utf-8", errors="replace")
    return encoded[:MAX_BYTES].decode("utf-8", errors="ignore").rstrip().encode("utf-8")
