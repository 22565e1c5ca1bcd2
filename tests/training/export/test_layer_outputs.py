import pytest
import torch
from torch import Tensor, nn

from app.artifact.files import PIXELS
from tests.support.tiny_networks import tiny_network
from training.architectures.views import with_views
from training.export.layer_outputs import outputs_of


@pytest.fixture
def network() -> nn.Sequential:
    return tiny_network()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _step_by_step(network: nn.Sequential, image: Tensor) -> dict[str, Tensor]:
    """Return every layer's output, computed one after the other on copies."""
    found = {PIXELS: image}
    for name, layer in network.named_children():
        image = layer(image.clone())
        found[name] = image
    return found


@torch.no_grad()
def test_layers_give_what_they_give_one_after_the_other(
    network: nn.Sequential, image: Tensor
) -> None:
    expected = _step_by_step(network, image)
    with outputs_of(network, list(expected), len(image)) as found:
        network(image)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@torch.no_grad()
def test_an_activation_that_works_in_place_does_not_change_what_was_collected(
    network: nn.Sequential, image: Tensor
) -> None:
    with outputs_of(network, ["conv1", "bn2"], len(image)) as found:
        network(image)
    assert (found["conv1"][:, 0] < 0).all()
    assert (found["bn2"] < 0).any()


@pytest.mark.parametrize("failing", [False, True])
@torch.no_grad()
def test_the_network_is_left_as_it_was(
    network: nn.Sequential, image: Tensor, failing: bool
) -> None:
    with outputs_of(network, [PIXELS, "conv1"], len(image)) as found:
        network(image)
        if failing:
            with pytest.raises(RuntimeError):
                network(image[:, :1])
    before = {name: tensor.clone() for name, tensor in found.items()}
    network(-image)
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    relus = [module for module in network if isinstance(module, nn.ReLU)]
    assert [relu.inplace for relu in relus] == [True, True]


def test_an_error_inside_leaves_no_hook_behind(network: nn.Sequential, image: Tensor) -> None:
    with pytest.raises(KeyError), outputs_of(network, ["conv1"], 1) as found:
        raise KeyError
    network(image)
    assert found == {}


@torch.no_grad()
def test_of_several_views_only_the_images_as_they_are_count(
    network: nn.Sequential, image: Tensor
) -> None:
    expected = _step_by_step(network, image)
    with outputs_of(network, [PIXELS, "conv2"], len(image)) as found:
        with_views(network, 6)(image)
    assert torch.equal(found[PIXELS], image)
    assert torch.allclose(found["conv2"], expected["conv2"], atol=1e-5)
