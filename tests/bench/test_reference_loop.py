"""The tutorial's loop, which ours is held against: that it is what the tutorial teaches."""

import pytest
import torch
from PIL import Image

from bench.training.reference_loop import Pictures, make_reference_loop, make_transform
from tests.support.training_fixtures import TINY
from training.architectures import simple_cnn
from training.data import dataset
from training.kernels import norm_pool
from training.run import checkpoint
from training.vision import import_torchvision

# The DataLoader forks, as in the tutorial; Python 3.12 and newer warn where there are threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("as_deterministic_as_before"),
]


def test_items_are_what_torchvision_gives(source: dataset.Source) -> None:
    transforms = import_torchvision().transforms
    mean, deviation = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    split = source.load_train()

    image, label = Pictures(split, make_transform(mean, deviation))[7]

    expected = transforms.functional.normalize(
        transforms.functional.to_tensor(Image.fromarray(split.images[7].numpy())), mean, deviation
    )
    assert torch.equal(image, expected)
    assert label == split.labels[7]


def test_batches_are_float32_contiguous_and_hold_every_training_image_once(
    source: dataset.Source,
) -> None:
    loop = make_reference_loop(TINY, source)
    images = source.load_train()
    chosen, _ = dataset.split_holdout(images.labels, TINY.holdout, TINY.split_seed)

    batches = list(loop.loader)

    assert {len(labels) for _, labels in batches[:-1]} == {TINY.batch_size}
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x, _ in batches)
    seen = torch.cat([x for x, _ in batches]).flatten(1)
    ours = dataset.normalize(images[chosen].images, loop.mean, loop.deviation).flatten(1)
    exactly = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(seen, ours, compute_mode=exactly).min(1)
    assert nearest.values.max() < 1e-3
    assert sorted(nearest.indices.tolist()) == list(range(len(chosen)))
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, images.labels[chosen][nearest.indices])


def test_both_loops_start_from_the_same_statistics(
    source: dataset.Source, trained: checkpoint.Checkpoint
) -> None:
    loop = make_reference_loop(TINY, source)

    assert loop.mean == trained.state.mean
    assert loop.deviation == trained.state.deviation


def test_the_tutorials_loop_learns(source: dataset.Source) -> None:
    loop = make_reference_loop(TINY, source)

    first, second = loop.train_epoch(), loop.train_epoch()

    assert second < first
    images = source.load_train()
    probabilities = loop.predict(images.images.numpy()).probabilities
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert (probabilities.argmax(1) == images.labels.numpy()).mean() > 0.2


def test_the_tutorials_loop_is_not_slowed_by_what_ours_asks_of_torch(
    source: dataset.Source,
) -> None:
    torch.use_deterministic_algorithms(True)

    make_reference_loop(TINY, source).train_epoch()

    assert not torch.are_deterministic_algorithms_enabled()


def test_the_tutorials_loop_has_nothing_of_what_makes_ours_fast(
    source: dataset.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(norm_pool, "_kernels")
    monkeypatch.delattr(simple_cnn, "norm_pool_relu")

    make_reference_loop(TINY, source).train_epoch()
