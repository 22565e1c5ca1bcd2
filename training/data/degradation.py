"""Training images made as bad as a service gets them: compressed, blurred, noisy, resampled.

The kinds are those of Hendrycks & Dietterich (2019), which a benchmark of corruptions measures too,
so accuracy there is of kinds that were trained on. Strengths are ours, chosen on held-out images.
Everything is drawn from the generator that is given.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Kind = Callable[[Tensor, torch.Generator], Tensor]
"""Degrades float32 `[N,3,H,W]` of 0 to 255, each image by a strength of its own."""

COMPRESSED = 0.5
"""The part of the degraded images that are compressed as JPEG after all else."""

QUALITIES = 20, 96
"""Of JPEG, the last not included. Photographs are saved at 75 to 95, and sent on at less."""
_SMALLER = 12, 16, 20, 24, 28  # of 32 pixels a side
_KERNEL = 7


def degrade(images: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Degrade a random part of the images, each in one random way, and compress half of these.

    Args:
        images: uint8 `[N,H,W,3]`.
        part: the probability of each image.
        generator: of the processor; draws everything.

    Returns:
        uint8 `[N,H,W,3]`, on the device of `images`.
    """
    drawn = torch.rand(len(images), generator=generator)
    kinds = torch.randint(len(KINDS), (len(images),), generator=generator)
    compressed = torch.rand(len(images), generator=generator) < COMPRESSED
    degraded = images.clone()
    for number, kind in enumerate(KINDS):
        chosen = torch.nonzero((kinds == number) & (drawn < part)).flatten()
        if len(chosen):
            pixels = images[chosen].cpu().permute(0, 3, 1, 2).float()
            found = kind(pixels, generator).round().clamp(0, 255).to(torch.uint8)
            degraded[chosen] = found.permute(0, 2, 3, 1).to(images.device)
    chosen = torch.nonzero(compressed & (drawn < part)).flatten()
    if len(chosen):
        degraded[chosen] = _compress(degraded[chosen].cpu(), generator).to(images.device)
    return degraded


def _compress(images: Tensor, generator: torch.Generator) -> Tensor:
    """Compress uint8 `[N,H,W,3]` as JPEG of a random quality, with or without fewer colours."""
    qualities = torch.randint(*QUALITIES, (len(images),), generator=generator).tolist()
    subsampled = torch.randint(2, (len(images),), generator=generator).tolist()
    found = np.empty(images.shape, np.uint8)
    for place, (pixels, quality, fewer) in enumerate(
        zip(images.numpy(), qualities, subsampled, strict=True)
    ):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2 * fewer)
        found[place] = np.asarray(Image.open(file))
    return torch.from_numpy(found)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Return float32 `[count,1,1,1]`."""
    return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)


def leave(images: Tensor, _: torch.Generator) -> Tensor:
    """For images that are only compressed."""
    return images


def add_gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add normal noise, as of a sensor in the dark."""
    deviations = _uniform(0, 30, len(images), generator)
    return images + deviations * torch.randn(images.shape, generator=generator)


def add_shot_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each value from a Poisson distribution, as of few photons."""
    photons = _uniform(3.5, 6, len(images), generator).exp()  # 33 to 400 for white
    return torch.poisson(images / 255 * photons, generator=generator) / photons * 255


def add_impulse_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Make single values black or white."""
    parts = _uniform(0, 0.1, len(images), generator)
    drawn = torch.rand(images.shape, generator=generator)
    dark = images.masked_fill(drawn < parts / 2, 0)
    return torch.where((drawn >= parts / 2) & (drawn < parts), 255.0, dark)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur by a normal distribution."""
    deviations = _uniform(0.3, 1.4, len(images), generator)
    place = torch.arange(_KERNEL) - _KERNEL // 2
    line = torch.exp(-(place**2) / (2 * deviations.flatten()[:, None] ** 2))
    return _convolve(images, line[:, :, None] * line[:, None, :])


def blur_by_motion_or_defocus(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur along a line of a random direction and length, or out of focus over a disc."""
    angles = torch.rand((len(images), 1, 1), generator=generator) * torch.pi
    halves = 0.5 + 2.5 * torch.rand((len(images), 1, 1), generator=generator)
    place = (torch.arange(_KERNEL) - _KERNEL // 2).float()
    along = place[:, None] * angles.sin() + place[None, :] * angles.cos()
    across = place[:, None] * angles.cos() - place[None, :] * angles.sin()
    near = (1 - across.abs()).clamp(0)
    inside = (halves + 0.5 - along.abs()).clamp(0, 1)
    disc = (halves / 2 + 0.5 - (along**2 + across**2).sqrt()).clamp(0, 1)
    focused = torch.rand((len(images), 1, 1), generator=generator) < 0.5
    return _convolve(images, torch.where(focused, near * inside, disc))


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image by a kernel of its own, `[N,k,k]`, scaled to a sum of 1."""
    count, channels, height, width = images.shape
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    weights = kernels[:, None].repeat_interleave(channels, 0)
    padded = functional.pad(images, [_KERNEL // 2] * 4, mode="reflect")
    flat = padded.reshape(1, count * channels, *padded.shape[2:])
    found = functional.conv2d(flat, weights, groups=count * channels)
    return found.reshape(count, channels, height, width)


def change_contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lower the contrast, and make the image brighter or darker."""
    middle = images.mean((1, 2, 3), keepdim=True)
    factors = _uniform(0.2, 1.1, len(images), generator)
    shifts = _uniform(-60, 60, len(images), generator)
    return middle + factors * (images - middle) + shifts


def add_fog(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lay a white cloud over the image."""
    coarse = torch.rand((len(images), 1, 4, 4), generator=generator)
    fine = torch.rand((len(images), 1, 8, 8), generator=generator)
    size = list(images.shape[2:])
    cloud = functional.interpolate(coarse, size, mode="bilinear") + 0.5 * functional.interpolate(
        fine, size, mode="bilinear"
    )
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    thickness = _uniform(0.1, 1.0, len(images), generator)
    white = thickness * (cloud - low) / (high - low)
    return images * (1 - white) + 255 * white


def resample(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reduce the image and enlarge it again, to pixels or smoothly."""
    sizes = torch.randint(len(_SMALLER), (len(images),), generator=generator)
    smooth = torch.rand(len(images), generator=generator) < 0.5
    found = images.clone()
    for number, side in enumerate(_SMALLER):
        for chosen, mode in ((smooth, "bicubic"), (~smooth, "nearest")):
            places = torch.nonzero(chosen & (sizes == number)).flatten()
            if len(places):
                small = functional.interpolate(images[places], [side, side], mode="area")
                found[places] = functional.interpolate(small, list(images.shape[2:]), mode=mode)
    return found


def zoom(images: Tensor, generator: torch.Generator) -> Tensor:
    """Show a part of the image anywhere, or the image and some of its mirror image around it."""
    scales = _uniform(0.65, 1.25, len(images), generator).flatten()
    room = (1 - scales).abs()[:, None]
    shifts = room * (2 * torch.rand((len(images), 2), generator=generator) - 1)
    transforms = torch.zeros(len(images), 2, 3)
    transforms[:, 0, 0] = transforms[:, 1, 1] = scales
    transforms[:, :, 2] = shifts
    grid = functional.affine_grid(transforms, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )


KINDS: tuple[Kind, ...] = (
    leave,
    add_gaussian_noise,
    add_shot_noise,
    add_impulse_noise,
    blur,
    blur_by_motion_or_defocus,
    change_contrast,
    add_fog,
    resample,
    zoom,
)
"""The ways of degrading, equally likely."""
