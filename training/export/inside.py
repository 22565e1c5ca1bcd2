"""The inside of a network, for an artifact: a service without torch can show it.

Kernels, biases, and the parts of test images to which each filter responds most. Nothing here
writes a file or reads a data set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from app.artifact.files import BIAS, CLASSIFIER
from app.artifact.manifest import LayerRecord
from app.artifact.strongest import PATCHES, Strongest, pack_strongest
from app.artifact.tensors import Images
from training.architectures.describe import averaged_layer
from training.data import dataset
from training.export.layer_outputs import outputs_of

MOST_FILTERS = 1000
"""Filters with strongest patches, over all layers: each layer has the same number, its first."""

LARGEST_PART = 16
"""Side in pixels to which larger parts of an image are reduced."""

_BATCH = 500
_BEYOND = 128  # grey, where a part reaches out of the image


def first_filters_and_kernels(
    network: nn.Module, image_size: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """Return the weights that can be looked at as pictures, by layer, in network order.

    Every convolution's kernels, `[out,in,height,width]`. Where the first layer is fully
    connected, its weights come first, as one picture of the input's size for each of its units.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    for index, (name, module) in enumerate(layers):
        kernels = module.weight.detach()
        if isinstance(module, nn.Conv2d):
            weights[name] = kernels.contiguous().numpy()
        elif index == 0:
            weights[name] = kernels.reshape(len(kernels), 3, *image_size).numpy()
    return weights


def biases_and_classifier(
    network: nn.Module, layers: Sequence[LayerRecord]
) -> dict[str, NDArray[np.float32]]:
    """Return the weights that `layers.npz` holds: those that are no pictures.

    Args:
        network: on the processor.
        layers: its layers.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    for layer in layers:
        bias = getattr(network.get_submodule(layer.name), "bias", None)
        if layer.is_convolution and bias is not None:
            arrays[BIAS.format(layer.name)] = bias.detach().numpy()
    if averaged_layer(layers) is not None:
        last = network.get_submodule(layers[-1].name)
        arrays[CLASSIFIER] = last.get_parameter("weight").detach().numpy()
    return arrays


def strongest_patches(
    network: nn.Module,
    layers: Sequence[LayerRecord],
    images: Images,
    mean: list[float],
    deviation: list[float],
) -> dict[str, NDArray[Any]]:
    """Return the nine parts of images, each of another one, to which each filter responds most.

    A part is what the filter's one output value sees; if that is as large as the whole image, it is
    the whole image. The filter's own output counts, before any normalisation of it.

    Args:
        network: in evaluation mode, on the processor.
        layers: its layers.
        images: uint8 `[N,H,W,3]`.
        mean: of each channel, 0 to 1.
        deviation: likewise.

    Returns:
        The arrays of `responses.npz`; none if there are fewer than nine images.
    """
    convolutions = [layer for layer in layers if layer.is_convolution]
    if not convolutions or len(images) < PATCHES:
        return {}
    kept = max(MOST_FILTERS // len(convolutions), 1)
    names = [layer.name for layer in convolutions]
    arrays: dict[str, NDArray[Any]] = {}
    found = _find_strongest(network, names, kept, images, mean, deviation)
    for layer, (values, chosen, places) in zip(convolutions, found, strict=True):
        corners, side = _corners(places, layer, images.shape[1])
        patches = _cut_patches(images, chosen, corners, side)
        strongest = Strongest(patches, chosen.astype(np.int32), corners.astype(np.int16), values)
        arrays |= pack_strongest(layer.name, strongest)
    return arrays


_Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Of a layer's filters: values, indices of images, and places in the output counted row by row,
each `[filters,9]`."""


@torch.inference_mode()
def _find_strongest(
    network: nn.Module,
    layers: list[str],
    kept: int,
    images: Images,
    mean: list[float],
    deviation: list[float],
) -> list[_Found]:
    best: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for batch in torch.from_numpy(images).split(_BATCH):
        with outputs_of(network, layers, len(batch)) as maps:
            network(dataset.normalize(batch, mean, deviation))
        for name in layers:
            values, places = maps[name][:, :kept].flatten(2).max(2)
            best[name].append((values, places))
    found = []
    for name in layers:
        values, places = (torch.cat(parts) for parts in zip(*best[name], strict=True))
        top = values.topk(PATCHES, dim=0)
        there = places.gather(0, top.indices)
        found.append((top.values.T.numpy(), top.indices.T.numpy(), there.T.numpy()))
    return found


def _corners(
    places: NDArray[np.int64], layer: LayerRecord, image_side: int
) -> tuple[NDArray[np.int64], int]:
    """Return row and column of each part's first pixel, `[filters,9,2]`, and the parts' side."""
    side = min(layer.receptive_field or image_side, image_side)
    if side == image_side:
        return np.zeros((*places.shape, 2), np.int64), side
    rows_and_columns = np.stack(np.divmod(places, layer.shape[2]), axis=-1)
    return rows_and_columns * layer.effective_stride - layer.effective_padding, side


def _cut_patches(
    images: Images, chosen: NDArray[np.int64], corners: NDArray[np.int64], side: int
) -> NDArray[np.uint8]:
    """Return patches of test images, uint8 `[filters,9,side,side,3]`, large ones reduced."""
    small = min(side, LARGEST_PART)
    patches = np.empty((*chosen.shape, small, small, 3), np.uint8)
    margin = ((side, side), (side, side), (0, 0))
    for row, column in np.ndindex(chosen.shape):
        image = np.pad(images[chosen[row, column]], margin, constant_values=_BEYOND)
        top, left = corners[row, column] + side
        part = Image.fromarray(image[top : top + side, left : left + side])
        patches[row, column] = np.asarray(part.resize((small, small), Image.Resampling.BICUBIC))
    return patches
