"""The loops of `norm_pool`, compiled by numba at their first call and kept for later processes.

Images are `[N,H,W,C]` with even height and width, in float32 or in bfloat16, which NumPy does not
have and which comes as the uint16 of its bits. Arithmetic and the sums over an image are float32;
sums over images are float64. The number of threads changes no result. Knows nothing of torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange, types
from numba.extending import overload

Array = npt.NDArray[Any]

NONE = np.uint8(4)
"""The place of a 2×2 window without a positive pixel; the others are 0 to 3, row by row."""


def _compiled(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile at the first call, and keep the code if numba finds a folder to write it to."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, parallel=parallel)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache
            return njit(parallel=parallel)(function)

    return compile_


def _widen(value: Any) -> Any:
    """Return a pixel as float32."""
    raise NotImplementedError


@overload(_widen, strict=False)
def _widen_typed(value: Any) -> Any:
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def _narrow(value: Any, like: Any) -> Any:
    """Return a float32 as a pixel of the type of `like`, rounded to nearest, ties to even."""
    raise NotImplementedError


@overload(_narrow, strict=False)
def _narrow_typed(value: Any, like: Any) -> Any:  # noqa: ARG001 - overloads have the same arguments
    if isinstance(like, types.Float):
        return lambda value, like: value  # noqa: ARG005

    def rounded(value: Any, like: Any) -> Any:  # noqa: ARG001
        bits = np.float32(value).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return rounded


@_compiled()
def normalize_and_pool(
    images: Array, weight: Array, bias: Array, epsilon: float, pooled: Array
) -> tuple[Array, Array, Array, Array]:
    """Normalise, take the largest of each 2×2 pixels, and write it, or 0 where it is negative.

    Args:
        images: see the module.
        weight: of the normalisation, float32 `[C]`.
        bias: of the normalisation, float32 `[C]`.
        epsilon: is added to the variance.
        pooled: the output, `[N,H/2,W/2,C]`.

    Returns:
        Each channel's mean and variance (over N·H·W), float64 `[C]`. Each window's pixel with the
        largest normalised value, shaped like `pooled`, and that pixel's place, uint8: 0 to 3 row by
        row, or `NONE` where the value is not positive.
    """
    near = _first_pixel(images)
    sums = np.zeros((2, len(images), len(near)), np.float32)
    _add_pixels(images, near, sums)
    first, second = _add_up(sums) / (images.size // len(near))
    mean, variance = first + near, np.maximum(second - first**2, 0.0)
    scale = weight / np.sqrt(variance + epsilon)
    shift = bias - scale * mean
    largest = np.empty(pooled.shape, images.dtype)
    places = np.empty(pooled.shape, np.uint8)
    _pool(images, scale.astype(np.float32), shift.astype(np.float32), pooled, largest, places)
    return mean, variance, largest, places


@_compiled()
def spread_gradient(
    images: Array,
    gradient: Array,
    kept: tuple[Array, Array, Array, Array],
    weight: Array,
    epsilon: float,
    spread: Array,
) -> tuple[Array, Array]:
    """Write the gradient of the images; return the gradients of weight and bias, float64 `[C]`.

    Ioffe and Szegedy 2015, section 3, for windows in which only one pixel has a gradient.

    Args:
        images: the images that were normalised.
        gradient: of `pooled`.
        kept: the results of `normalize_and_pool`.
        weight: as in `normalize_and_pool`.
        epsilon: as in `normalize_and_pool`.
        spread: the output, shaped like `images`.
    """
    mean, variance, largest, places = kept
    deviation = np.sqrt(variance + epsilon)
    sums = np.zeros((2, len(images), len(mean)), np.float32)
    _add_gradients(gradient, largest, places, mean.astype(np.float32), sums)
    to_bias, products = _add_up(sums)
    to_weight = products / deviation
    scale = weight / deviation
    pixels = images.size // images.shape[3]
    slope = scale * to_weight / deviation / pixels
    offset = scale * to_bias / pixels - slope * mean
    factors = (scale.astype(np.float32), offset.astype(np.float32), slope.astype(np.float32))
    _spread(images, gradient, places, factors, spread)
    return to_weight, to_bias


@_compiled()
def _first_pixel(images: Array) -> Array:
    pixel = np.empty(images.shape[3], np.float32)
    for c in range(len(pixel)):
        pixel[c] = _widen(images[0, 0, 0, c])
    return pixel


@_compiled(parallel=True)
def _add_pixels(images: Array, near: Array, sums: Array) -> None:
    """Add up `pixel - near` and its squares; without `near`, large squares would cancel."""
    count, height, width, channels = images.shape
    for n in prange(count):
        total, square = sums[0, n], sums[1, n]
        for row in range(height):
            for column in range(width):
                for c in range(channels):
                    value = _widen(images[n, row, column, c]) - near[c]
                    total[c] += value
                    square[c] += value * value


@_compiled(parallel=True)
def _pool(
    images: Array, scale: Array, shift: Array, pooled: Array, largest: Array, places: Array
) -> None:
    count, height, width, channels = pooled.shape
    zero = np.float32(0)
    for n in prange(count):
        for row in range(height):
            for column in range(width):
                for c in range(channels):
                    first = _widen(images[n, 2 * row, 2 * column, c])
                    pixel, best, place = first, scale[c] * first, np.uint8(0)
                    other = _widen(images[n, 2 * row, 2 * column + 1, c])
                    if scale[c] * other > best:
                        pixel, best, place = other, scale[c] * other, np.uint8(1)
                    other = _widen(images[n, 2 * row + 1, 2 * column, c])
                    if scale[c] * other > best:
                        pixel, best, place = other, scale[c] * other, np.uint8(2)
                    other = _widen(images[n, 2 * row + 1, 2 * column + 1, c])
                    if scale[c] * other > best:
                        pixel, best, place = other, scale[c] * other, np.uint8(3)
                    best += shift[c]
                    if best <= zero:
                        best, place = zero, NONE
                    pooled[n, row, column, c] = _narrow(best, images[0, 0, 0, 0])
                    largest[n, row, column, c] = _narrow(pixel, images[0, 0, 0, 0])
                    places[n, row, column, c] = place


@_compiled(parallel=True)
def _add_gradients(
    gradient: Array, largest: Array, places: Array, mean: Array, sums: Array
) -> None:
    """Add up the gradients that pass the ReLU, and their products with `pixel - mean`."""
    count, height, width, channels = gradient.shape
    for n in prange(count):
        total, product = sums[0, n], sums[1, n]
        for row in range(height):
            for column in range(width):
                for c in range(channels):
                    value = _widen(gradient[n, row, column, c])
                    value = value if places[n, row, column, c] != NONE else np.float32(0)
                    total[c] += value
                    product[c] += value * (_widen(largest[n, row, column, c]) - mean[c])


@_compiled(parallel=True)
def _spread(
    images: Array,
    gradient: Array,
    places: Array,
    factors: tuple[Array, Array, Array],
    spread: Array,
) -> None:
    """Write `scale · gradient - offset - slope · pixel`, the gradient 0 at pixels not chosen."""
    count, height, width, channels = images.shape
    scale, offset, slope = factors
    for n in prange(count):
        for row in range(height):
            for column in range(width):
                here = np.uint8(2 * (row & 1) + (column & 1))
                for c in range(channels):
                    value = scale[c] * _widen(gradient[n, row >> 1, column >> 1, c])
                    chosen = places[n, row >> 1, column >> 1, c] == here
                    value = value if chosen else np.float32(0)
                    value -= offset[c] + slope[c] * _widen(images[n, row, column, c])
                    spread[n, row, column, c] = _narrow(value, images[0, 0, 0, 0])


@_compiled()
def _add_up(sums: Array) -> Array:
    """Return the sums over all images, float64 `[2,C]`, from sums over each, float32 `[2,N,C]`."""
    totals = np.zeros((2, sums.shape[2]), np.float64)
    for part in range(2):
        for n in range(sums.shape[1]):
            for c in range(sums.shape[2]):
                totals[part, c] += sums[part, n, c]
    return totals
