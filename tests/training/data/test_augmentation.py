import numpy as np
import torch

from tests.support import sample
from training.data import dataset
from training.data.augmentation import Augmentation, Epoch, epoch_batches
from training.recipes import Flip


def _batches(
    number: int = 1,
    *,
    flip: Flip = "off",
    translate: int = 0,
    crop: int = 0,
    cutout: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    noise: float = 0.0,
    degraded: float = 0.0,
    size: int = 64,
) -> list[dataset.Split]:
    images, labels = sample.read("train")
    split = dataset.Split(torch.from_numpy(images), torch.arange(len(labels)))
    augmentation = Augmentation(
        flip=flip,
        translate=translate,
        crop=crop,
        cutout=cutout,
        brightness=brightness,
        contrast=contrast,
        noise=noise,
        degraded=degraded,
        mean=(120, 110, 100),
        deviation=(60, 50, 40),
    )
    return list(epoch_batches(split, size, Epoch(number, seed=5), augmentation))


def test_an_epoch_holds_every_image_once_and_the_last_batch_is_smaller() -> None:
    batches = _batches()
    assert [len(batch) for batch in batches] == [64, 64, 64, 48]
    order = torch.cat([batch.labels for batch in batches])
    assert sorted(order.tolist()) == list(range(240))
    assert order.tolist() != list(range(240))
    images, _ = sample.read("train")
    assert np.array_equal(torch.cat([batch.images for batch in batches]), images[order])


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched() -> None:
    images, _ = sample.read("train")
    mirrored = 0
    for batch in _batches(flip="random"):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            if not np.array_equal(image, images[index]):
                assert np.array_equal(image, images[index][:, ::-1])
                mirrored += 1
    assert 90 < mirrored < 150


def _mirrored_in(number: int) -> set[int]:
    images, _ = sample.read("train")
    return {
        index
        for batch in _batches(number, flip="alternating")
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True)
        if not np.array_equal(image, images[index])
    }


def test_alternating_flip_shows_each_image_both_ways_in_any_two_epochs() -> None:
    first, second, third = (_mirrored_in(number) for number in (1, 2, 3))
    assert 90 < len(first) < 150
    assert first.isdisjoint(second)
    assert len(first | second) == 240
    assert third == first


def test_cutout_covers_a_square_with_its_colour_and_leaves_the_rest() -> None:
    images, _ = sample.read("train")
    sizes = set()
    for batch in _batches(cutout=8):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            changed = np.any(image != images[index], axis=2)
            rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
            square = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (square == (120, 110, 100)).all()
            sizes.add(square.shape[:2])
    assert max(sizes) == (8, 8)
    assert min(min(size) for size in sizes) == 4


def test_a_translated_image_is_a_crop_of_the_reflected_one() -> None:
    images, _ = sample.read("train")
    seen = set()
    for batch in _batches(translate=3):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            padded = np.pad(images[index], ((3, 3), (3, 3), (0, 0)), mode="reflect")
            places = [
                (row, column)
                for row in range(7)
                for column in range(7)
                if np.array_equal(padded[row : row + 32, column : column + 32], image)
            ]
            assert places
            seen.add(places[0])
    assert len(seen) > 40


def test_a_cropped_image_is_a_smaller_part_of_the_reflected_one() -> None:
    images, _ = sample.read("train")
    seen = set()
    for batch in _batches(crop=28, translate=1):
        assert batch.images.shape[1:] == (28, 28, 3)
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            padded = np.pad(images[index], ((1, 1), (1, 1), (0, 0)), mode="reflect")
            parts = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(0, 1))
            found = (parts.transpose(0, 1, 3, 4, 2) == image).all(axis=(2, 3, 4))
            assert found.any()
            seen.add(tuple(np.argwhere(found)[0]))
    assert seen == {(row, column) for row in range(7) for column in range(7)}


def test_brightness_moves_all_channels_by_the_same_part_of_their_deviations() -> None:
    images, _ = sample.read("train")
    moves = []
    for batch in _batches(brightness=0.2):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            free = (images[index] > 20) & (images[index] < 235)  # where nothing is cut off
            moved = image.astype(float) - images[index]
            parts = [moved[..., c][free[..., c]] / (60, 50, 40)[c] for c in range(3)]
            moves.append([part.mean() for part in parts if len(part)])
    assert all(max(move) - min(move) < 0.03 for move in moves)
    brightest = [move[0] for move in moves]
    assert 0.15 < max(brightest) < 0.22
    assert -0.22 < min(brightest) < -0.15


def test_contrast_stretches_the_distance_from_the_mean_colour() -> None:
    images, _ = sample.read("train")
    stretched = []
    for batch in _batches(contrast=0.3):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            before = images[index] - np.array([120.0, 110.0, 100.0])
            after = image - np.array([120.0, 110.0, 100.0])
            free = (image > 0) & (image < 255) & (abs(before) > 30)
            stretched.append(np.median(after[free] / before[free]))
    assert 1.2 < max(stretched) < 1.32
    assert 0.68 < min(stretched) < 0.8


def test_each_image_has_normal_noise_of_a_deviation_of_its_own() -> None:
    images, _ = sample.read("train")
    added, deviations = [], []
    for batch in _batches(noise=16):
        for image, index in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            free = (images[index] > 70) & (images[index] < 185)  # where nothing is cut off
            noise = (image.astype(float) - images[index])[free]
            if len(noise) > 500:
                added.append(noise.mean())
                deviations.append(noise.std())
    assert abs(np.mean(added)) < 0.05
    assert 7.3 < np.mean(deviations) < 8.7
    assert min(deviations) < 1
    assert 15 < max(deviations) < 17


def test_no_two_batches_have_the_same_noise() -> None:
    images, _ = sample.read("train")
    first, second, *_ = _batches(noise=16)
    noise = [batch.images.numpy().astype(float) - images[batch.labels] for batch in (first, second)]
    correlation = np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]
    assert abs(correlation) < 0.05


def test_an_epoch_is_the_same_twice_and_another_one_differs() -> None:
    first, again, other = (
        torch.cat(
            [batch.images for batch in _batches(number, translate=2, brightness=0.1, noise=9)]
        )
        for number in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_degraded_images_are_mirrored_and_shifted_ones_made_worse() -> None:
    plain = _batches(flip="random", translate=4)
    for batch, before in zip(
        _batches(flip="random", translate=4, degraded=0.5), plain, strict=True
    ):
        assert torch.equal(batch.labels, before.labels)
        changed = (batch.images != before.images).flatten(1).any(1)
        assert 0.2 < changed.float().mean() < 0.8
    assert not torch.equal(_batches(1, degraded=0.5)[0].images, _batches(2, degraded=0.5)[0].images)
