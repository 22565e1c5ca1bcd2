import numpy as np
import pytest
import torch
from torch import Tensor

from app.artifact.files import PIXELS
from training.architectures import find_architecture
from training.architectures.describe import changing_layers, describe
from training.export.ood import OodScore, layer_for_score, statistics_of

SURE = torch.tensor([[0.0, -100.0]])  # its energy is 0


def _drawn(count: int, seed: int = 0) -> Tensor:
    """Statistics of four channels that hang together, `[count,8]`."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 8, generator=generator) @ mixing + 3


def _maps(statistics: Tensor) -> Tensor:
    """Feature maps of two pixels a channel with these means and deviations."""
    mean, deviation = statistics.chunk(2, 1)
    return torch.stack([mean - deviation, mean + deviation], 2).unsqueeze(2)


def test_statistics_are_each_channels_mean_and_deviation() -> None:
    maps = torch.randn(5, 4, 6, 7)
    found = statistics_of(maps).numpy()
    assert found.shape == (5, 8)
    np.testing.assert_allclose(found[:, :4], maps.numpy().mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(found[:, 4:], maps.numpy().std(axis=(2, 3)), atol=1e-6)


def test_an_odd_look_is_the_squared_mahalanobis_distance() -> None:
    train, seen = _drawn(4000), _drawn(50, 1).abs()
    covariance = np.cov(train.numpy().astype(float), rowvar=False)
    away = seen.numpy() - train.numpy().mean(0)
    expected = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    found = 2 * OodScore("layer", train)(_maps(seen), SURE.expand(50, 2))
    # The ridge that is added to the variances takes a little from the smallest of them.
    assert np.corrcoef(found.numpy(), expected)[0, 1] > 0.999
    assert 0.8 < np.median(found.numpy() / expected) < 1.001


def test_from_the_median_to_nineteen_of_twenty_held_out_images_is_one() -> None:
    score, heldout = OodScore("layer", _drawn(2000)), _drawn(1001, 1)
    heldout[:, 4:] = heldout[:, 4:].abs()  # deviations, which have no sign
    score.calibrate(heldout, SURE.expand(1001, 2))
    looks = 2 * score(_maps(heldout), SURE.expand(1001, 2))
    assert looks.median().item() == pytest.approx(0, abs=1e-3)
    assert looks.quantile(0.95).item() == pytest.approx(1, abs=1e-3)


def test_weak_evidence_counts_as_much_as_an_odd_look() -> None:
    score, heldout = OodScore("layer", _drawn(2000)), _drawn(1001, 1)
    highest = torch.linspace(9, 5, 1001)
    logits = torch.stack([highest, highest], 1) - np.log(2)  # the energy is minus the highest
    score.calibrate(heldout, logits)
    same = _maps(heldout[:1].abs()).expand(3, -1, -1, -1)
    chosen = logits[[500, 950, 1000]]  # the median, 19 of 20, the weakest
    steps = 2 * (score(same, chosen) - score(same, chosen)[0])
    np.testing.assert_allclose(steps.numpy(), [0, 1, 500 / 450], atol=1e-3)


def test_a_network_that_answers_all_images_alike_still_gives_numbers() -> None:
    score, heldout = OodScore("layer", _drawn(2000)), _drawn(1, 1).expand(40, -1)
    score.calibrate(heldout, SURE.expand(40, 2))
    found = score(_maps(heldout.abs()), SURE.expand(40, 2))
    assert found.isfinite().all()


def test_channels_that_are_silent_on_all_images_do_no_harm() -> None:
    train, seen = _drawn(2000), _drawn(10, 1).abs()
    expected = OodScore("layer", train[:, [0, 1, 4, 5]])(
        _maps(seen[:, [0, 1, 4, 5]]), SURE.expand(10, 2)
    )
    silent = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0])
    found = OodScore("layer", train * silent)(_maps(seen * silent), SURE.expand(10, 2))
    assert torch.allclose(found, expected, rtol=0.02)
    loud = OodScore("layer", train * silent)(_maps(seen), SURE.expand(10, 2))
    assert (loud > found).all()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("simple-cnn", "relu2"),  # 16 pixels a side
        ("fast", "block1.activation"),  # 15
        ("resnet20", "block2_3.relu"),
        ("efficientnet-b0", "block3_1.layers.silu1"),  # SiLU counts too
        ("fc", PIXELS),
    ],
)
def test_the_layer_is_the_last_activation_that_still_sees_textures(name: str, layer: str) -> None:
    layers = changing_layers(describe(name).layers)
    assert layer_for_score(layers) == layer
    if layer != PIXELS:
        find_architecture(name).build(10, 0.0).get_submodule(layer)
