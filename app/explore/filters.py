"""Pictures of a layer's filters: their weights, and the patches to which they respond most."""

import numpy as np
from numpy.typing import NDArray

from app.explore.pictures import enlarged, tile_grid

_PATCHES_ACROSS = 3
_FRAME = 255  # white, around the patches of one filter


def filter_grid(weights: NDArray[np.float32], scale: int, columns: int) -> bytes:
    """Draw every filter of a convolution, row by row, on neutral grey.

    Args:
        weights: float32 `[out,in,kh,kw]`.
        scale: pixels of the picture for one weight, also the gap between filters.
        columns: filters in a row; fewer filters than that make a narrower picture.

    Returns:
        A PNG. Three input channels are drawn as red, green and blue. For any other number, grey
        shows the mean of the absolute weights over the input channels: where a filter looks, not
        the pattern that it looks for. Each filter is scaled from its smallest to its largest value
        over all channels, so colours compare within a filter and not between filters, and a zero
        weight has another grey in each filter. A filter with one value throughout is mid-grey.

    Raises:
        ValueError: no filters, or `scale` or `columns` below one.
    """
    if weights.ndim != 4 or 0 in weights.shape:
        raise ValueError(f"weights have shape {weights.shape}; expected [out,in,kh,kw]")
    if scale < 1 or columns < 1:
        raise ValueError(f"scale is {scale} and columns is {columns}; both are at least 1")
    return enlarged(tile_grid(filter_tiles(weights), columns), scale)


def filter_tiles(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture of each filter, uint8 `[out,kh,kw,3]`, as `filter_grid` describes it."""
    if weights.shape[1] == 3:
        tiles = weights.transpose(0, 2, 3, 1).astype(np.float64)
    else:
        grey = np.abs(weights.astype(np.float64)).mean(axis=1)
        tiles = np.repeat(grey[..., np.newaxis], 3, axis=3)
    low = tiles.min(axis=(1, 2, 3), keepdims=True)
    spread = tiles.max(axis=(1, 2, 3), keepdims=True) - low
    unit = np.full_like(tiles, 0.5)
    np.divide(tiles - low, spread, out=unit, where=spread > 0)
    levels: NDArray[np.uint8] = np.rint(unit * 255).astype(np.uint8)
    return levels


def strongest_tiles(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture for each filter, three by three patches in a white frame.

    Args:
        patches: uint8 `[filters,9,side,side,3]`.

    Returns:
        uint8 `[filters,height,width,3]`.
    """
    tiles = np.stack([tile_grid(nine, _PATCHES_ACROSS) for nine in patches])
    tiles[:, [0, -1]] = tiles[:, :, [0, -1]] = _FRAME
    return tiles
