"""Makes a file out of one that is here already and a delta from the server, where that is less to send.

Order: is there a file to begin from → does the server have a delta → is it less than what is missing, and is there room
→ fetch it, its digest checked → rebuild beside the store → the store adopts what has the promised digest. A delta is
never trusted: it can cost a second download and nothing else, since whatever goes wrong with it, the caller fetches the
whole file. Memory is bounded by the piece and the LZMA dictionary, the size on disk by the manifest's.

Modules that only a delta needs are imported by the first one; a Python without lzma downloads whole files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.download import Downloader, NotServedError
from edge_agent.errors import ArtifactCorruptError, BundleRefusedError, DownloadError
from fleet_protocol.errors import ProtocolError
from fleet_protocol.manifest import Artifact, Manifest, Variant

_LOG = logging.getLogger(__name__)
MIN_DELTA_BYTES = 4096
"""A smaller file is fetched whole: the question would cost as much."""
_PIECE_BYTES = 64 * 1024
_OFFER_MAX_BYTES = 4096
_OFFER_TRIES = 20
_OFFER_WAIT_MAX_S = 10.0
"""Between two questions while the server computes the delta; after _OFFER_TRIES the whole file is fetched."""
_DECODER_OVERHEAD_BYTES = 2 * 1024 * 1024


def choose_base(
    artifact: Artifact, manifest: Manifest, held: Sequence[tuple[Manifest, Sequence[Artifact]]]
) -> Artifact:
    """Of files held of other bundles of the model, the one most like `artifact` of `manifest`; itself for none.

    `held` is (manifest, its files that are here). Golden vectors are made from golden vectors; a variant from the one
    of the same name, else of the same quantization, else of the nearest size; of equals, the newest version's.
    """
    wanted = next((one for one in manifest.variants if one.file == artifact), None)
    candidates: list[tuple[tuple[bool, bool, int, int], Artifact]] = []
    for other, files in held:
        if other == manifest:
            continue
        if wanted is None:
            if artifact == manifest.golden and other.golden in files:
                candidates.append(((False, False, 0, -other.created_at_ns), other.golden))
            continue
        candidates += [
            (_unlikeness(wanted, variant, other.created_at_ns), variant.file)
            for variant in other.variants
            if variant.file in files
        ]
    return min(candidates, key=lambda candidate: candidate[0])[1] if candidates else artifact


def _unlikeness(wanted: Variant, variant: Variant, created_at_ns: int) -> tuple[bool, bool, int, int]:
    return (
        variant.name != wanted.name,
        variant.quantization != wanted.quantization,
        abs(variant.file.size_bytes - wanted.file.size_bytes),
        -created_at_ns,
    )


def fetch_by_delta(artifact: Artifact, manifest: Manifest, *, store: BundleStore, downloader: Downloader) -> bool:
    """Bring `artifact` into the store by a delta. False when there is none that helps: then nothing has changed.

    Raises DownloadError when the server is away, and DownloadStopped.
    """
    if artifact.size_bytes < MIN_DELTA_BYTES:
        return False
    base = choose_base(artifact, manifest, store.held(manifest.model))
    if base == artifact or base.size_bytes < MIN_DELTA_BYTES:
        return False
    left_bytes = artifact.size_bytes - store.partial_size(artifact.sha256)
    try:
        delta = _offered(artifact, base, downloader)
        if delta is None or delta.size_bytes >= left_bytes:
            return False
        store.require_space(left_bytes + delta.size_bytes - store.partial_size(delta.sha256))
        _fetch_and_rebuild(artifact, base, delta, store=store, downloader=downloader)
    except (ArtifactCorruptError, BundleRefusedError, NotServedError, ProtocolError) as error:
        _LOG.warning("the delta for %s is of no use, the whole file is fetched: %s", artifact.sha256[:16], error)
        return False
    _LOG.info(
        "%s %s: %d bytes rebuilt from a delta of %d bytes, %d bytes saved",
        manifest.model, manifest.version, artifact.size_bytes, delta.size_bytes, left_bytes - delta.size_bytes,
    )  # fmt: skip
    return True


def _offered(artifact: Artifact, base: Artifact, downloader: Downloader) -> Artifact | None:
    """The delta that the server has, once it has computed it."""
    from fleet_protocol.delta import decode_offer

    try:
        import lzma  # noqa: F401 - some builds of Python have none
    except ImportError:
        return None
    for _ in range(_OFFER_TRIES):
        answer = downloader.ask(f"artifacts/{artifact.sha256}/deltas/{base.sha256}", max_bytes=_OFFER_MAX_BYTES)
        if answer.status == 200:
            offer = decode_offer(answer.body)
            return Artifact(sha256=offer.delta, size_bytes=offer.size_bytes)
        if answer.status != 202:
            return None
        downloader.wait(min(answer.retry_after_s or 1.0, _OFFER_WAIT_MAX_S))
    return None


def _fetch_and_rebuild(
    artifact: Artifact, base: Artifact, delta: Artifact, *, store: BundleStore, downloader: Downloader
) -> None:
    try:
        downloader.fetch(
            delta.sha256,
            store.partial_path(delta.sha256),
            max_bytes=delta.size_bytes,
            exact_bytes=delta.size_bytes,
            may_be_gone=True,
        )
        store.adopt(delta.sha256)
        rebuild(
            store.path(delta.sha256),
            store.path(base.sha256),
            store.partial_path(artifact.sha256),
            size_bytes=artifact.size_bytes,
            base_size_bytes=base.size_bytes,
        )
        store.adopt(artifact.sha256)
    finally:
        store.path(delta.sha256).unlink(missing_ok=True)


def rebuild(delta: Path, base: Path, out: Path, *, size_bytes: int, base_size_bytes: int) -> None:
    """Write to `out` the file of `size_bytes` that `delta` makes of `base`. Its digest is the caller's to check.

    Raises ArtifactCorruptError, and removes `out`, when the delta is none or makes another size; DownloadError when
    the disk fails.
    """
    import lzma

    try:
        with delta.open("rb") as compressed, base.open("rb") as old, out.open("wb") as new:
            _apply(_Residual(compressed), old, new, size_bytes=size_bytes, base_size_bytes=base_size_bytes)
    except (ArtifactCorruptError, ProtocolError, lzma.LZMAError, EOFError) as error:
        out.unlink(missing_ok=True)
        raise ArtifactCorruptError(f"the delta does not rebuild the file: {error}") from None
    except OSError as error:
        raise DownloadError(f"cannot rebuild {out}: {error.strerror or error}") from None


def _apply(residual: _Residual, old: BinaryIO, new: BinaryIO, *, size_bytes: int, base_size_bytes: int) -> None:
    from fleet_protocol.delta import MAX_HEADER_BYTES, NO_BASE, decode_header, padding

    length = int.from_bytes(residual.read(4), "little")
    if length > MAX_HEADER_BYTES:
        raise ArtifactCorruptError(f"its header has {length} bytes, more than {MAX_HEADER_BYTES}")
    header = decode_header(residual.read(length), size_bytes=size_bytes, base_size_bytes=base_size_bytes)
    read_bytes = 0
    for offset, segment_bytes in header.segments:
        residual.read(padding(read_bytes))
        read_bytes += padding(read_bytes) + segment_bytes
        old.seek(max(offset, 0))
        for start in range(0, segment_bytes, _PIECE_BYTES):
            piece = residual.read(min(_PIECE_BYTES, segment_bytes - start))
            new.write(piece if offset == NO_BASE else _sum(piece, old.read(len(piece))))
    residual.expect_end()


def _sum(residual: bytes, base: bytes) -> bytes:
    import numpy as np

    if len(base) != len(residual):
        raise ArtifactCorruptError("the base is shorter than the delta says")
    return (np.frombuffer(residual, np.uint8) + np.frombuffer(base, np.uint8)).tobytes()


class _Residual:
    """Reads the decompressed stream piece by piece; it is never larger in memory than what was asked for."""

    def __init__(self, compressed: BinaryIO) -> None:
        import lzma

        from fleet_protocol.delta import DELTA_MAGIC, MAX_DICTIONARY_BYTES

        if compressed.read(len(DELTA_MAGIC)) != DELTA_MAGIC:
            raise ArtifactCorruptError("it does not begin as a delta does")
        limit = MAX_DICTIONARY_BYTES + _DECODER_OVERHEAD_BYTES
        self._compressed = compressed
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limit)

    def read(self, size_bytes: int) -> bytes:
        """Exactly so many bytes. Raises ArtifactCorruptError when there are fewer."""
        content = bytearray()
        while len(content) < size_bytes:
            if self._decoder.eof:
                raise ArtifactCorruptError("it ends early")
            content += self._more(size_bytes - len(content))
        return bytes(content)

    def expect_end(self) -> None:
        """Raise ArtifactCorruptError if there is more."""
        while not self._decoder.eof:
            if self._more(1):
                raise ArtifactCorruptError("it makes more bytes than promised")

    def _more(self, most: int) -> bytes:
        fresh = self._compressed.read(_PIECE_BYTES) if self._decoder.needs_input else b""
        if self._decoder.needs_input and not fresh:
            raise ArtifactCorruptError("it was cut off")
        return self._decoder.decompress(fresh, most)
