"""What the bytes of a model file say before ONNX Runtime reads them: their digest, and whether they quantize.

Invariants: the digest covers every file that the model loads (weights kept in files of their own too), so equal
digests mean equal models; where that cannot be told for certain there is no digest, and nothing may be cached
under it. The file is read, never parsed: what is looked for are the words that ONNX writes in the clear.
`KnownDigests` remembers the digest of an unchanged file, as reading a large one costs more than loading it: a file
is unchanged while its place on disk, size and both times are, and was not remembered in the moment it was written.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_agent.durable_files import replace_file

if TYPE_CHECKING:
    import mmap

MAX_KNOWN_FILES = 256
"""Digests that are remembered in one folder; what was learnt first is forgotten first."""
SETTLED_NS = 2_000_000_000
"""A file changed less long ago may change once more without a new time."""
MAX_EXTERNAL_FILES = 64
"""A model of more weight files than this has no digest."""
_MAX_NAME_BYTES = 4096

# the entry ("location", value) of a TensorProto's external_data, as every protobuf writer puts it
_LOCATION_ENTRY = b"\x0a\x08location\x12"
_LOCATION = b"location"
# operators that add 8-bit products, or become such when ONNX Runtime fuses them
_INTEGER_OPERATORS = (
    b"QuantizeLinear", b"QLinear", b"QGemm", b"MatMulInteger", b"ConvInteger", b"DynamicQuantize", b"QAttention"
)  # fmt: skip


def model_digest(path: Path) -> str | None:
    """sha256 in hex over the file and the weight files it names; None when it names files in a way not understood.

    Raises OSError for a file that cannot be read.
    """
    import hashlib  # brings OpenSSL with it, which a process without a cache never needs

    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256")
    names = external_files(path)
    if names is None:
        return None
    for name in names:
        with (path.parent / name).open("rb") as file:
            whole.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


class KnownDigests:
    """The digests of model files, remembered in one JSON file of the cache folder."""

    def __init__(self, *, folder: Path, settled_ns: int = SETTLED_NS) -> None:
        self._file = folder / "digests.json"
        self._settled_ns = settled_ns

    def of(self, path: Path) -> str | None:
        """`model_digest(path)`, from memory when the file is unchanged. Raises OSError for an unreadable file."""
        name, identity = str(path.resolve()), _identity(path)
        known = self._read()
        entry = known.get(name)
        if entry is not None and entry[:-1] == identity:
            return str(entry[-1])
        digest = model_digest(path)
        settled = time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) >= self._settled_ns
        # weights in further files may change under an unchanged model file
        if digest is not None and settled and external_files(path) == () and _identity(path) == identity:
            known.pop(name, None)
            known[name] = [*identity, digest]
            self._write(dict(list(known.items())[-MAX_KNOWN_FILES:]))
        return digest

    def _read(self) -> dict[str, list[int | str]]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, list[int | str]])
        except (OSError, msgspec.MsgspecError, ValueError):
            return {}

    def _write(self, known: dict[str, list[int | str]]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._file, msgspec.json.encode(known))
        except OSError:
            return  # learnt again on the next start


def _identity(path: Path) -> list[int | str]:
    """Where a file is on disk and in which state: [inode, size, modified ns, changed ns]."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def external_files(path: Path) -> tuple[str, ...] | None:
    """The names of the weight files that a model refers to, sorted; None when that cannot be told."""
    import mmap

    with path.open("rb") as file:
        if not path.stat().st_size:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _locations(content)


def quantizes(path: Path) -> bool:
    """Whether the model may run on integer kernels: it quantizes activations. A false alarm is possible, a miss not."""
    import mmap

    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(operator) >= 0 for operator in _INTEGER_OPERATORS)


def _locations(content: mmap.mmap) -> tuple[str, ...] | None:
    names: set[str] = set()
    at = content.find(_LOCATION)
    while at >= 0:
        entry = at - 2
        name = _text(content, at + len(_LOCATION) + 1) if content[max(entry, 0) : at + 9] == _LOCATION_ENTRY else None
        # a tensor or operator may be called "location" too: then it is not known what is meant
        if not name or len(names) >= MAX_EXTERNAL_FILES:
            return None
        names.add(name)
        at = content.find(_LOCATION, at + len(_LOCATION) + len(name.encode()))
    return tuple(sorted(names))


def _text(content: mmap.mmap, at: int) -> str | None:
    """The protobuf string at `at`: a length of one or two bytes, then UTF-8."""
    head = content[at : at + 2]
    if len(head) < 2:
        return None
    size, start = (head[0], at + 1) if head[0] < 0x80 else ((head[0] & 0x7F) | head[1] << 7, at + 2)
    raw = content[start : start + size]
    if not 0 < size <= _MAX_NAME_BYTES or len(raw) != size:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
