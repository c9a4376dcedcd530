"""The images of a folder as rows. Needs Pillow, of the extra `batch`.

Images are found recursively, in the order of their paths, hidden ones and links to folders left out. Each is decoded,
turned into the channels that the input's signature has, resized to its height and width (bilinear), scaled and laid
out; its path in the folder is kept as `path`. What cannot be decoded is a reject with its reason.
The orientation that a camera noted in the file is not applied: models are trained on the pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.extras import library
from edge_agent.batch.rows import TEXT, Chunk, Column
from edge_agent.errors import ConfigError, InvalidInputError
from edge_agent.runtime.tensors import NUMPY_TYPES
from fleet_protocol.manifest import TensorSpec

Scale = Literal["0..1", "0..255", "imagenet"]
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_IMAGES = 10_000_000
MAX_PIXELS = 100_000_000
"""A larger image is a reject: decoding it could take all memory."""
MAX_SIDE = 16_384
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """What an input takes: height, width, 1 or 3 channels, and where its axes are."""

    height: int
    width: int
    channels: int
    layout: Literal["NHWC", "NCHW", "NHW"]


def image_shape(spec: TensorSpec, size: tuple[int, int] | None = None) -> ImageShape:
    """How `spec` takes images: channels first where both ends of its shape could be channels.

    `size` is height and width where the signature leaves them free. Raises ConfigError.
    """
    rows = spec.shape[1:]
    if len(rows) == 2:
        height, width, channels = rows[0], rows[1], 1
        layout: Literal["NHWC", "NCHW", "NHW"] = "NHW"
    elif len(rows) == 3 and rows[0] in (1, 3):
        channels, height, width, layout = rows[0], rows[1], rows[2], "NCHW"
    elif len(rows) == 3 and rows[2] in (1, 3):
        height, width, channels, layout = rows[0], rows[1], rows[2], "NHWC"
    else:
        raise ConfigError(f"input {spec.name!r} of shape {spec.shape} takes no images of 1 or 3 channels")
    if size is not None:
        if any(fixed not in (-1, given) for fixed, given in zip((height, width), size, strict=True)):
            raise ConfigError(f"--size {size[0]}x{size[1]}: the model takes {height}x{width}")
        height, width = size
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ConfigError("the model takes images of any size: say --size HEIGHTxWIDTH")
    return ImageShape(height=height, width=width, channels=channels, layout=layout)


class ImageSource:
    """A folder of images for a model with one input."""

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        *,
        scale: Scale = "0..1",
        size: tuple[int, int] | None = None,
        threads: int = 1,
    ) -> None:
        self._image = library("PIL.Image")
        self._errors = (OSError, ValueError, SyntaxError, EOFError, self._image.DecompressionBombError, MemoryError)
        if len(specs) != 1 or specs[0].datatype == "BYTES":
            raise ConfigError("a folder of images feeds a model with one numeric input")
        self._spec, self._dtype = specs[0], NUMPY_TYPES[specs[0].datatype]
        self._shape, self._scale, self._threads = image_shape(specs[0], size), scale, threads
        if self._dtype.kind != "f" and scale != "0..255":
            raise ConfigError(f"input {specs[0].name!r} takes {specs[0].datatype}: say --scale 0..255")
        if scale == "imagenet" and self._shape.channels != 3:
            raise ConfigError("--scale imagenet is for images of three channels: the model takes one")
        self._folder, self.paths = folder, list_images(folder)
        self.total_rows: int | None = len(self.paths)
        self.row_bytes = self._shape.height * self._shape.width * self._shape.channels * self._dtype.itemsize
        self.kept: tuple[Column, ...] = (Column("path", TEXT),)

    def chunks(self, cursor: Mapping[str, Any] | None, chunk_rows: Callable[[], int]) -> Iterator[Chunk]:
        """The images from `cursor` on, decoded by several threads."""
        first = int(cursor["row"]) if cursor else 0
        with ThreadPoolExecutor(self._threads, "edgefleet-decode") as pool:
            while first < len(self.paths):
                paths = self.paths[first : first + chunk_rows()]
                decoded = list(pool.map(self._decode, paths))
                good = [index for index, image in enumerate(decoded) if not isinstance(image, str)]
                images = [image for image in decoded if not isinstance(image, str)]
                shape = self._spec_shape()
                yield Chunk(
                    rows=np.array(good, dtype=np.int64) + first,
                    inputs={self._spec.name: np.stack(images) if images else np.zeros((0, *shape), self._dtype)},
                    kept={"path": np.array([*(paths[index] for index in good), None], dtype=object)[:-1]},
                    rejects=[
                        (first + index, f"{paths[index]}: {image}")
                        for index, image in enumerate(decoded)
                        if isinstance(image, str)
                    ],
                    cursor={"row": first + len(paths)},
                    read_fraction=(first + len(paths)) / len(self.paths),
                )
                first += len(paths)

    def _spec_shape(self) -> tuple[int, ...]:
        shape = self._shape
        return {
            "NHWC": (shape.height, shape.width, shape.channels),
            "NCHW": (shape.channels, shape.height, shape.width),
            "NHW": (shape.height, shape.width),
        }[shape.layout]

    def _decode(self, path: str) -> NDArray[Any] | str:
        """One image as the model takes it, or why not."""
        shape = self._shape
        try:
            with self._image.open(self._folder / path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"it has {image.width}x{image.height} pixels, more than {MAX_PIXELS}"
                pixels = image.convert("RGB" if shape.channels == 3 else "L")
                if pixels.size != (shape.width, shape.height):
                    pixels = pixels.resize((shape.width, shape.height), self._image.Resampling.BILINEAR)
                array = np.asarray(pixels)
        except self._errors as error:
            return f"it is no readable image: {' '.join(str(error).split())}"
        return np.ascontiguousarray(self._laid_out(self._scaled(array)))

    def _scaled(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        if self._scale == "0..255":
            return pixels.astype(self._dtype)
        scaled: NDArray[Any] = pixels.astype(np.float32) / np.float32(255)
        if self._scale == "imagenet":
            scaled = (scaled - np.array(_IMAGENET_MEAN, np.float32)) / np.array(_IMAGENET_DEVIATION, np.float32)
        return scaled.astype(self._dtype)

    def _laid_out(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self._shape.layout == "NHW":
            return pixels
        deep = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return deep.transpose(2, 0, 1) if self._shape.layout == "NCHW" else deep


def list_images(folder: Path) -> list[str]:
    """The paths of the images in `folder`, relative to it and sorted. Raises InvalidInputError when there is none."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (Path(parent) / name).relative_to(folder).as_posix()
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
        if len(found) > MAX_IMAGES:
            raise InvalidInputError(f"{folder} holds more than {MAX_IMAGES} images: score its folders one by one")
    if not found:
        raise InvalidInputError(f"{folder} holds no images: known are {', '.join(sorted(SUFFIXES))}")
    return sorted(found)
