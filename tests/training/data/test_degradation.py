"""What degradation does to images of which the answer is known, and to real ones."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support import sample
from training.data import degradation
from training.data.degradation import KINDS, Kind, degrade


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(sample.read("train")[0])


def _drawn(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _apply(kind: Kind, level: float, *, count: int = 200) -> Tensor:
    """Return what a kind makes of flat images."""
    return kind(torch.full((count, 3, 32, 32), level), _drawn())


def test_the_part_that_is_asked_for_is_changed_and_the_rest_is_not(images: Tensor) -> None:
    before = images.clone()
    found = degrade(images, 0.5, _drawn())
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    changed = (found != images).flatten(1).any(1)
    assert 0.35 < changed.float().mean() < 0.55  # some are only compressed, and some of those not
    assert torch.equal(images, before)
    assert torch.equal(degrade(images, 0.0, _drawn()), images)


def test_the_same_numbers_degrade_alike(images: Tensor) -> None:
    assert torch.equal(degrade(images, 1.0, _drawn()), degrade(images, 1.0, _drawn()))
    assert not torch.equal(degrade(images, 1.0, _drawn()), degrade(images, 1.0, _drawn(4)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_keeps_the_shape_and_is_finite(kind: Kind, images: Tensor) -> None:
    pixels = images.permute(0, 3, 1, 2).float()
    found = kind(pixels, _drawn())
    assert found.shape == pixels.shape
    assert found.isfinite().all()
    assert (found - pixels).abs().mean() < 80
    crop = kind(pixels[:8, :, :24, :24].contiguous(), _drawn())
    assert crop.shape == (8, 3, 24, 24)


@pytest.mark.parametrize("quality", [20, 95])
def test_half_of_the_degraded_images_are_jpegs_of_pillow(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, quality: int
) -> None:
    monkeypatch.setattr(degradation, "QUALITIES", (quality, quality + 1))
    monkeypatch.setattr(degradation, "KINDS", (degradation.leave,))
    found = degrade(images, 1.0, _drawn())
    seen = {"untouched": 0, "4:4:4": 0, "4:2:0": 0}
    for image, before in zip(found.numpy(), images.numpy(), strict=True):
        expected = {"untouched": before}
        for name, subsampling in (("4:4:4", 0), ("4:2:0", 2)):
            file = BytesIO()
            Image.fromarray(before).save(file, "JPEG", quality=quality, subsampling=subsampling)
            expected[name] = np.asarray(Image.open(file))
        same = next(name for name in expected if np.array_equal(image, expected[name]))
        seen[same] += 1
    assert seen["untouched"] == pytest.approx(len(images) / 2, abs=30)
    assert seen["4:4:4"] == pytest.approx(len(images) / 4, abs=25)


def test_noise_is_as_strong_as_drawn_and_without_bias() -> None:
    white = _apply(degradation.add_gaussian_noise, 128.0).flatten(1)
    assert white.std(1).max() < 31
    assert white.std(1).mean() == pytest.approx(15, abs=2)
    assert white.mean() == pytest.approx(128, abs=0.5)
    shot = _apply(degradation.add_shot_noise, 128.0).flatten(1)
    assert shot.mean() == pytest.approx(128, abs=0.5)
    assert 8 < shot.std(1).min() < shot.std(1).max() < 33
    impulses = _apply(degradation.add_impulse_noise, 128.0)
    assert set(impulses.unique().tolist()) == {0.0, 128.0, 255.0}
    assert (impulses == 0).float().mean() == pytest.approx(0.025, abs=0.005)
    assert (impulses == 255).float().mean() == pytest.approx(0.025, abs=0.005)


@pytest.mark.parametrize("name", ["blur", "blur_by_motion_or_defocus", "resample", "zoom"])
def test_what_moves_light_leaves_a_flat_image_as_it_is(name: str) -> None:
    found = _apply(getattr(degradation, name), 90.0)
    assert torch.allclose(found, torch.full_like(found, 90.0), atol=0.01)


def test_blur_spreads_a_point_both_ways_and_motion_along_a_line() -> None:
    points = torch.zeros(100, 3, 32, 32)
    points[:, :, 16, 16] = 255
    blurred = degradation.blur(points, _drawn())
    assert torch.allclose(blurred, blurred.transpose(2, 3), atol=1e-4)
    moved = degradation.blur_by_motion_or_defocus(points, _drawn())
    uneven = (moved - moved.transpose(2, 3)).abs().amax((1, 2, 3)) > 1
    assert 0.2 < uneven.float().mean() < 0.8  # the others are out of focus, over a disc
    for found in (blurred, moved):
        assert torch.allclose(found.sum((2, 3)), torch.tensor(255.0), atol=0.1)


def test_a_veil_only_adds_light_and_paleness_keeps_the_mean() -> None:
    noise = 255 * torch.rand(100, 3, 32, 32, generator=_drawn())
    assert (degradation.add_fog(noise, _drawn()) >= noise - 1e-3).all()
    pale = degradation.change_contrast(noise, _drawn())
    assert ((pale.mean((1, 2, 3)) - noise.mean((1, 2, 3))).abs() < 60.1).all()
    ratios = pale.std((1, 2, 3)) / noise.std((1, 2, 3))
    assert 0.19 < ratios.min() < 0.4 < 0.9 < ratios.max() < 1.11


def test_zoom_moves_the_picture_in_both_directions_and_sizes() -> None:
    ramp = torch.arange(32.0).expand(300, 3, 32, 32) * 8
    found = degradation.zoom(ramp, _drawn())
    slopes = (found[:, 0, 16, 17] - found[:, 0, 16, 15]).abs() / 16
    assert slopes.min() < 0.8
    assert slopes.max() > 1.15
