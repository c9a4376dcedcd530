"""What others make of a pair of files: run by U6 in an environment of its own, which has their packages.

    python codecs.py OLD NEW [OLD NEW ...]

Prints one JSON list, for each pair {codec: bytes}. Each is asked for its smallest: zstd at level 22 with the old file
as its dictionary (what `zstd --patch-from` does), bsdiff with bzip2, HDiffPatch with LZMA2 and with zstd. The ones
"alone" are the new file without the old.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

import bsdiff4
import hdiffpatch
import zstandard


def sizes(old: bytes, new: bytes) -> dict[str, int]:
    """Bytes to send, by codec. Each delta is applied, and must make the new file."""
    parameters = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    patched = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(new)
    restored = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2**27).decompress(patched)
    by_bsdiff = bsdiff4.diff(old, new)
    by_hdiff = [
        hdiffpatch.diff(old, new, compression=kind)
        for kind in (hdiffpatch.COMPRESSION_LZMA2, hdiffpatch.COMPRESSION_ZSTD)
    ]
    remade = [restored, bsdiff4.patch(old, by_bsdiff), *(hdiffpatch.apply(old, delta) for delta in by_hdiff)]
    if any(one != new for one in remade):
        raise SystemExit("a codec does not make the new file")
    return {
        "zstd alone": len(zstandard.ZstdCompressor(level=22).compress(new)),
        "xz alone": len(lzma.compress(new, preset=9 | lzma.PRESET_EXTREME)),
        "zstd with the old file as dictionary": len(patched),
        "bsdiff4": len(by_bsdiff),
        "hdiffpatch lzma2": len(by_hdiff[0]),
        "hdiffpatch zstd": len(by_hdiff[1]),
    }


if __name__ == "__main__":
    files = [Path(name).read_bytes() for name in sys.argv[1:]]
    print(json.dumps([sizes(old, new) for old, new in zip(files[::2], files[1::2], strict=True)]))
