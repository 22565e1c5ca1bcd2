"""Pictures of feature maps: a layer's output for one image."""

import numpy as np
from numpy.typing import NDArray

from app.explore.filters import filter_tiles
from app.explore.heat_maps import signed_colours

_BRIGHTEST = 99.5  # percentile of a layer's absolute values that has the full colour


def map_tiles(maps: NDArray[np.float32], filters: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """Return a picture of each channel: orange above zero, purple below, white at zero.

    All channels share one scale of colours, so that they can be compared. A channel of zeros is
    white.

    Args:
        maps: float32 `[channels,h,w]`.
        filters: float32 `[channels,in,kh,kw]`, drawn to the left of each map if given. A filter is
            enlarged by a whole factor, up to the height of the map.

    Returns:
        uint8 `[channels,height,width,3]`.
    """
    top = float(np.percentile(np.abs(maps), _BRIGHTEST)) or float(np.abs(maps).max()) or 1.0
    tiles = signed_colours(np.clip(maps / top, -1, 1))
    if filters is not None:
        tiles = np.concatenate([_filters_beside(filters, maps.shape[1]), tiles], axis=2)
    return tiles


def _filters_beside(filters: NDArray[np.float32], height: int) -> NDArray[np.uint8]:
    """Return pictures of filters, `height` pixels high, with a grey line at their right."""
    tiles = filter_tiles(filters)
    factor = max(height // tiles.shape[1], 1)
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)[:, :height]
    below = height - tiles.shape[1]
    return np.pad(tiles, ((0, 0), (0, below), (0, 1), (0, 0)), constant_values=128)
