"""Who says what: the classes, the unknown words, and the voices of each part of the data.

A voice is an accent (one of espeak-ng's languages that reads these words as English) with a variant (a vocal tract:
formants, pitch, roughness, or another synthesiser). Invariants:
1. A variant speaks in one part only, and variants that were made from one another (`klatt`, `klatt2`, …) are in the
   same part. Accents are shared by all parts.
2. Training hears none of HELD_OUT_WORDS as the class `unknown`; the other parts hear as many of either kind.
3. The classes' order is MLPerf Tiny's.
"""

from __future__ import annotations

from enum import StrEnum

KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
LABELS = (*KEYWORDS, "silence", "unknown")
SILENCE, UNKNOWN = LABELS.index("silence"), LABELS.index("unknown")


class Part(StrEnum):
    """A part of the data, by what it is for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    SELECTION = "selection"
    FINAL = "final"


ACCENTS = (
    "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
    "hi", "el", "ta",
)  # fmt: skip
"""Hindi, Greek and Tamil voices read words in Latin letters as English, with their own melody and timing."""

VARIANTS = {
    Part.TRAIN: (
        "f1", "f3", "f4", "m1", "m2", "m4", "m5", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy", "AnxiousAndy",
        "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Jacky", "Lee", "Marco", "Michael", "Nguyen", "RicishayMax",
        "RicishayMax2", "RicishayMax3", "Tweaky", "adam", "anika", "anikaRobot", "antonio", "belinda", "boris", "david",
        "edward", "edward2", "grandma", "gustave", "iven", "iven2", "iven3", "iven4", "john", "klatt", "klatt2",
        "klatt3", "klatt4", "klatt5", "klatt6", "marcelo", "max", "michel", "pablo", "paul", "robosoft", "robosoft2",
        "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8", "shelby", "travis", "victor",
    ),
    Part.CALIBRATION: ("f5", "m3", "Mike", "caleb", "linda", "rob"),
    Part.SELECTION: ("m6", "Annie", "Mario", "Storm", "aunty", "ed", "miguel", "norbert", "quincy"),
    Part.FINAL: (
        "f2", "Hugo", "announcer", "benjamin", "grandpa", "pedro", "robert", "sandro", "steph", "steph2", "steph3",
        "zac",
    ),
}  # fmt: skip

TRAIN_WORDS = (
    "bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven", "sheila",
    "six", "three", "tree", "two", "wow", "zero", "about", "again", "apple", "blue", "bottle", "car", "city", "cold",
    "day", "door", "dust", "early", "father", "fish", "flow", "garden", "gone", "green", "hello", "home", "know how",
    "late", "lamp", "light", "love", "market", "money", "more", "music", "night", "note", "often", "open", "paper",
    "people", "phone", "rain", "red", "river", "road", "salt", "school", "shop", "sing", "sister", "so", "spot",
    "sugar", "table", "time", "town", "under", "us", "voice", "water", "week", "white", "window", "winter", "world",
    "yard", "year", "yellow", "young",
)  # fmt: skip
HELD_OUT_WORDS = (
    "backward", "forward", "follow", "learn", "visual", "bread", "cloud", "coffee", "dinner", "engine", "flower",
    "friend", "gold", "kitchen", "lift", "listen", "morning", "mouse", "orbit", "orange", "pepper", "please", "radio",
    "rocket", "shoulder", "soft", "stone", "thank you", "turn", "yesterday",
)  # fmt: skip


def unknown_words(part: Part) -> tuple[str, ...]:
    """The words of the class `unknown` that a part hears."""
    return TRAIN_WORDS if part is Part.TRAIN else TRAIN_WORDS[: len(HELD_OUT_WORDS)] + HELD_OUT_WORDS
