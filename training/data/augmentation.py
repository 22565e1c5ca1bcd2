"""Batches of training images, cut and augmented as whole tensors on the device that trains.

All random numbers come from the epoch's seed. Nothing here knows of networks or of files.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.dataset import Split
from training.data.degradation import degrade
from training.recipes import Flip


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented; everything is off by default.

    Attributes:
        flip: mirror each image with probability one half (`random`), or a random half of them in
            odd epochs and the others in even ones (`alternating`).
        translate: shift by up to this many pixels in each direction, reflected at the border.
        crop: keep a random square of this many pixels a side; 0: the whole image.
        cutout: cover a square of this many pixels a side with the mean colour; its centre is
            anywhere in the image.
        brightness: make an image brighter or darker by up to this many deviations of each channel.
        contrast: stretch or shrink the distance from the mean colour by up to this part.
        noise: add normal noise; each image's standard deviation is uniform from 0 to this, of 255.
        degraded: the part of the images that is made worse as `training.data.degradation` does.
        mean: of each channel, 0 to 255.
        deviation: of each channel, 0 to 255.
    """

    flip: Flip = "off"
    translate: int = 0
    crop: int = 0
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    degraded: float = 0.0
    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    deviation: tuple[float, ...] = (63.0, 63.0, 63.0)


@dataclass(frozen=True)
class Epoch:
    """The number of a pass over the images, and the seed of its random numbers.

    Attributes:
        number: counts from 1.
        seed: of the run; it decides which images `alternating` mirrors first.
    """

    number: int
    seed: int

    @property
    def own_seed(self) -> int:
        """A seed for this epoch alone."""
        return self.seed * 100_003 + self.number


@dataclass(frozen=True)
class _Draws:
    """The random numbers of every image of an epoch, in the order of the images."""

    order: Tensor
    rows: Tensor
    columns: Tensor
    covered_rows: Tensor
    covered_columns: Tensor
    brightness: Tensor
    contrast: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> "_Draws":
        return _Draws(*(tensor.to(device) for tensor in vars(self).values()))

    def part(self, start: int, size: int) -> "_Draws":
        return _Draws(*(tensor[start : start + size] for tensor in vars(self).values()))


def epoch_batches(
    split: Split, batch_size: int, epoch: Epoch, augmentation: Augmentation
) -> Iterator[Split]:
    """Yield every image once, in random order, augmented, uint8 batches `[B,32,32,3]`.

    Flip and translation are one gather: each image has its own row and column indices, which are
    mirrored or shifted, and reflected where they leave the image.

    Args:
        split: the images, on the device that trains.
        batch_size: images in a batch; the last batch may be smaller.
        epoch: decides order and augmentation. Random numbers are drawn on the processor on any
            device, except for noise, which is drawn on the device.
        augmentation: how the images are augmented.
    """
    draws = _draw(split, epoch, augmentation).to(split.images.device)
    noise = torch.Generator(split.images.device).manual_seed(epoch.own_seed)
    degradation = torch.Generator().manual_seed(epoch.own_seed)
    for start in range(0, len(split), batch_size):
        chosen = draws.part(start, batch_size)
        images = _gather(split.images, chosen, augmentation)
        if augmentation.degraded:
            images = degrade(images, augmentation.degraded, degradation)
        images = _vary(images, chosen, augmentation, noise)
        yield Split(images, split.labels[chosen.order])


def _draw(split: Split, epoch: Epoch, augmentation: Augmentation) -> _Draws:
    generator = torch.Generator().manual_seed(epoch.own_seed)
    count, (height, width) = len(split), split.images.shape[1:3]
    order = torch.randperm(count, generator=generator)
    rows, columns = (
        _shifted(size, count, augmentation.crop, augmentation.translate, generator)
        for size in (height, width)
    )
    if augmentation.flip != "off":
        mirrored = _mirrored(order, epoch, augmentation.flip, generator)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return _Draws(
        order,
        rows,
        columns,
        _covered(rows.shape[1], count, augmentation.cutout, generator),
        _covered(columns.shape[1], count, augmentation.cutout, generator),
        _around(0, augmentation.brightness, count, generator),
        _around(1, augmentation.contrast, count, generator),
        _around(augmentation.noise / 2, augmentation.noise / 2, count, generator),
    )


def _gather(images: Tensor, draws: _Draws, augmentation: Augmentation) -> Tensor:
    if augmentation.flip == "off" and not augmentation.translate and not augmentation.crop:
        return images.index_select(0, draws.order)
    return images[draws.order[:, None, None], draws.rows[:, :, None], draws.columns[:, None, :]]


def _vary(
    images: Tensor, draws: _Draws, augmentation: Augmentation, noise: torch.Generator
) -> Tensor:
    """Change brightness and contrast, add noise and cover the squares; uint8 to uint8."""
    mean = torch.tensor(augmentation.mean, device=images.device)
    if augmentation.brightness or augmentation.contrast or augmentation.noise:
        deviation = torch.tensor(augmentation.deviation, device=images.device)
        brighter = images - mean + draws.brightness[:, None, None, None] * deviation
        varied = mean + draws.contrast[:, None, None, None] * brighter
        if augmentation.noise:
            normal = torch.randn(varied.shape, generator=noise, device=images.device)
            varied += draws.noise[:, None, None, None] * normal
        images = varied.round().clamp(0, 255).to(torch.uint8)
    if augmentation.cutout:
        square = draws.covered_rows[:, :, None] & draws.covered_columns[:, None, :]
        images = torch.where(square[..., None], mean.round().to(torch.uint8), images)
    return images


def _shifted(size: int, count: int, crop: int, limit: int, generator: torch.Generator) -> Tensor:
    """Return int64 `[count,crop or size]`: neighbouring indices, reflected at both borders.

    The first index is random: up to `limit` before the first place that fits, or after the last.
    """
    kept = crop or size
    first = torch.randint(-limit, size - kept + limit + 1, (count, 1), generator=generator)
    index = (torch.arange(kept) + first).abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _mirrored(order: Tensor, epoch: Epoch, flip: Flip, generator: torch.Generator) -> Tensor:
    """Return bool `[count]`: whether each image of the order is mirrored in this epoch."""
    if flip == "random":
        return torch.rand(len(order), generator=generator) < 0.5
    first = torch.rand(len(order), generator=torch.Generator().manual_seed(epoch.seed)) < 0.5
    return first[order] ^ (epoch.number % 2 == 0)


def _covered(size: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return bool `[count,size]`: the rows or columns of a square whose centre is anywhere."""
    if side == 0:
        return torch.zeros(count, size, dtype=torch.bool)
    start = torch.randint(0, size, (count, 1), generator=generator) - side // 2
    place = torch.arange(size)
    return (place >= start) & (place < start + side)


def _around(middle: float, most: float, count: int, generator: torch.Generator) -> Tensor:
    """Return float32 `[count]`, uniform from `most` below to `most` above the middle."""
    if most == 0:
        return torch.full((count,), float(middle))
    return middle + most * (2 * torch.rand(count, generator=generator) - 1)
