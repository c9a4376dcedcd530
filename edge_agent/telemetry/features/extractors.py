"""The extractors themselves: an array `[n, ...]` and parameters in, float64 `[n]` out.

Each costs microseconds for a sample, because it runs beside live traffic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError

Values = NDArray[np.float64]

DEFAULT_CHANNEL_AXIS = 1
MAX_PROJECTED_PLACES = 2**18  # the direction is kept: 2 MiB of float64
_LUMA = np.array([0.299, 0.587, 0.114])
_LUMA_TILE_PIXELS = 4096


def flat_samples(array: NDArray[Any]) -> NDArray[Any]:
    """`array` `[n, ...]` as `[n, numbers]`, without a copy where it is contiguous."""
    return array.reshape(len(array), math.prod(array.shape[1:]))  # -1 is undefined for an empty batch


def mean(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    """The mean of all of a sample; NaN of nothing."""
    flat = flat_samples(array)
    total: Values = np.add.reduce(flat, axis=1, dtype=np.float64)
    if not flat.shape[1]:
        return np.full(len(flat), np.nan)  # as numpy answers for nothing, without its warning
    total /= flat.shape[1]
    return total


def std(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    """The standard deviation of all of a sample; NaN of nothing."""
    means = mean(array, _)
    # centred first: the mean of squares less the squared mean cancels to noise for large offsets
    with np.errstate(invalid="ignore"):
        centred = flat_samples(array) - means[:, None]
        values: Values = np.sqrt(np.einsum("ij,ij->i", centred, centred) / max(centred.shape[1], 1))
    return values if centred.shape[1] else means


def brightness(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    """The mean of an image, or its mean luma where it has three channels."""
    axis = _channel_axis(array)
    if axis is None or array.shape[axis] != len(_LUMA):
        return mean(array, _)
    with np.errstate(invalid="ignore"):
        if axis == 1:
            planes = array.reshape(len(array), len(_LUMA), math.prod(array.shape[2:]))
            values: Values = np.add.reduce(planes, axis=2, dtype=np.float64) @ _LUMA
        else:
            values = _interleaved_luma(flat_samples(array))
    values /= max(math.prod(array.shape[1:]) // len(_LUMA), 1)
    return values


def _interleaved_luma(flat: NDArray[Any]) -> Values:
    """Sums of luma of RGBRGB..., a tile at a time: a sum over an axis of three is slow."""
    total = np.zeros(len(flat))
    step = 3 * _LUMA_TILE_PIXELS
    weights = np.tile(_LUMA, min(_LUMA_TILE_PIXELS, flat.shape[1] // 3))
    for start in range(0, flat.shape[1], step):
        tile = flat[:, start : start + step].astype(np.float64)
        total += tile @ weights[: tile.shape[1]]
    return total


def sharpness(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    """The mean absolute difference between pixels that are neighbours, down and across."""
    # unsigned pixels would wrap around in a difference
    image = array if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else array.astype(np.float64)
    last = _channel_axis(array) == 3
    with np.errstate(invalid="ignore"):
        if last:
            down, across = image[:, 1:] - image[:, :-1], image[:, :, 1:] - image[:, :, :-1]
        else:
            down, across = image[..., 1:, :] - image[..., :-1, :], image[..., :, 1:] - image[..., :, :-1]
        down, across = flat_samples(np.abs(down, out=down)), flat_samples(np.abs(across, out=across))
        total: Values = np.add.reduce(down, axis=1, dtype=np.float64) + np.add.reduce(across, axis=1, dtype=np.float64)
    total /= max(down.shape[1] + across.shape[1], 1)
    return total


def _channel_axis(array: NDArray[Any]) -> int | None:
    """Where an image `[n, ...]` of four dimensions has its one or three channels: first (1) before last (3)."""
    if array.ndim != 4:
        return None
    return next((axis for axis in (1, 3) if array.shape[axis] in (1, len(_LUMA))), None)


def channel_mean(array: NDArray[Any], parameters: Mapping[str, float]) -> Values:
    """The mean of place `channel` on `axis`."""
    channel, axis = int(parameters["channel"]), int(parameters.get("axis", DEFAULT_CHANNEL_AXIS))
    if not 1 <= axis < array.ndim or channel >= array.shape[axis]:
        raise InvalidInputError(f"channel_mean reads channel {channel} on axis {axis}; the input is {array.shape}")
    return mean(array[(slice(None),) * axis + (channel,)], parameters)


def column(array: NDArray[Any], parameters: Mapping[str, float]) -> Values:
    """One place of the flattened sample."""
    flat, index = flat_samples(array), int(parameters["index"])
    if index >= flat.shape[1]:
        raise InvalidInputError(f"column reads place {index}; a sample has {flat.shape[1]}")
    values: Values = flat[:, index].astype(np.float64)
    return values


def spectral_centroid(array: NDArray[Any], _: Mapping[str, float]) -> Values:
    """The mean frequency on the last axis weighted by magnitude, summed over the others: 0 is constant, 1 is Nyquist.

    NaN for a sample without energy.
    """
    length = array.shape[-1]
    if not array.size:
        return np.full(len(array), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitudes = np.abs(np.fft.rfft(array.astype(np.float64, copy=False), axis=-1))
        frequencies = np.arange(magnitudes.shape[-1]) * (2.0 / length)
        total = magnitudes.reshape(len(array), -1, len(frequencies)).sum(axis=1)
        values: Values = (total @ frequencies) / total.sum(axis=1)
    return values


def projection(array: NDArray[Any], parameters: Mapping[str, float]) -> Values:
    """The dot product of the flattened sample with a seeded direction of length 1."""
    from edge_agent.telemetry.features.directions import unit_direction

    flat = flat_samples(array)
    if flat.shape[1] > MAX_PROJECTED_PLACES:
        raise InvalidInputError(f"projection takes {MAX_PROJECTED_PLACES:,} numbers, a sample has {flat.shape[1]:,}")
    direction = unit_direction(int(parameters["seed"]), int(parameters["index"]), flat.shape[1])
    with np.errstate(invalid="ignore"):
        values: Values = flat.astype(np.float64, copy=False) @ direction
    return values
