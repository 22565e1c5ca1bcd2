import pytest
import torch
from torch import nn

from training.architectures import find_architecture
from training.recipes import Optimizer, Recipe, find_recipe
from training.run.optimization import Muon, make_optimizer, orthogonalize, set_learning_rate

MUON = find_recipe("fc").replace(
    optimizer="muon",
    learning_rate=0.1,
    bias_learning_rate=0.01,
    head_learning_rate=0.02,
    weight_decay=0.5,
    batch_size=10,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_an_orthogonalized_matrix_has_singular_values_about_one(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=dtype)
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_the_steps_that_muon_takes_bring_nearly_all_singular_values_about_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(32, 32)))
    assert values.quantile(0.05) > 0.5
    assert values.max() < 1.3


def test_orthogonalizing_keeps_the_directions() -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(24, 24))
    matrix = u @ torch.diag(torch.linspace(0.5, 1, 24)) @ v
    result = orthogonalize(matrix)
    kept = torch.diag(u.T @ result @ v.T)
    assert torch.allclose(result, u @ torch.diag(kept) @ v, atol=0.05)


def _step(recipe: Recipe, network: nn.Module, part: float) -> None:
    optimizer = make_optimizer(recipe, network)
    set_learning_rate(optimizer, part)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_muon_multiplies_in_the_recipes_precision(precision: str, dtype: torch.dtype) -> None:
    recipe = MUON.replace(precision=precision)
    optimizer = make_optimizer(recipe, find_architecture("fc").build(10, 0.0))
    assert isinstance(optimizer, Muon)
    assert optimizer.dtype == dtype


def test_muons_groups_are_kernels_biases_and_the_last_layer() -> None:
    optimizer = make_optimizer(MUON, find_architecture("fc").build(10, 0.0))
    assert isinstance(optimizer, Muon)
    shapes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    assert shapes == [[(256, 3072), (128, 256)], [(256,), (128,), (10,)], [(10, 128)]]
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False, False]
    assert [group["peak_lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.2])


def test_muon_holds_kernels_at_their_norm_and_moves_them_by_the_rate() -> None:
    torch.manual_seed(0)
    kernels = nn.Parameter(torch.randn(128, 64, 2, 2))
    optimizer = Muon([{"params": [kernels], "peak_lr": 0.1, "orthogonal": True}])
    before = kernels.detach() * (128**0.5 / kernels.detach().norm())
    kernels.grad = torch.randn(128, 64, 2, 2)
    set_learning_rate(optimizer, 0.5)
    optimizer.step()
    moved = kernels.detach() - before
    assert moved.norm().item() == pytest.approx(0.5 * 0.1 * 128**0.5, rel=0.3)


def test_at_rate_zero_nothing_but_the_norm_of_kernels_changes() -> None:
    torch.manual_seed(0)
    network = find_architecture("fc").build(10, 0.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    _step(MUON, network, part=0.0)
    for name in ("fc3.weight", "fc3.bias", "fc1.bias"):
        assert torch.equal(network.get_parameter(name), before[name])


def test_decay_takes_its_part_of_biases_and_last_layer_at_the_peak() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Muon([{"params": [parameter], "peak_lr": 2.0, "weight_decay": 0.25}])
    parameter.grad = torch.zeros(3)
    set_learning_rate(optimizer, 1.0)
    optimizer.step()
    assert parameter.tolist() == [0.75] * 3


def test_sgd_looks_ahead_as_torchs_does() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = Muon([{"params": [ours], "peak_lr": 0.1}])
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.85, nesterov=True)
    set_learning_rate(muon, 1.0)
    for _ in range(4):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        sgd.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_what_is_frozen_is_left_to_no_group() -> None:
    network = find_architecture("speednet").build(10, 0.0)
    optimizer = make_optimizer(find_recipe("speednet"), network)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}
    assert id(network.get_parameter("whiten.weight")) not in held


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_decays_matrices_and_kernels_alone(optimizer: Optimizer) -> None:
    recipe = Recipe(architecture="simple-cnn", optimizer=optimizer, weight_decay=0.3)
    network = find_architecture("simple-cnn").build(10, 0.0)
    decay = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(recipe, network).param_groups
        for parameter in group["params"]
    }
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name


def test_muon_with_adam_moves_layers_without_a_bias_by_muon_and_the_rest_by_adam() -> None:
    recipe = find_recipe("yolo")
    network = find_architecture("yolo").build(3, 0.0)
    kernels, rest = make_optimizer(recipe, network).param_groups
    assert kernels["orthogonal"]
    assert {parameter.ndim for parameter in kernels["params"]} == {4}
    heads = [network.get_parameter(f"head8.{name}.1.weight") for name in ("box", "label")]
    assert all(any(head is parameter for parameter in rest["params"]) for head in heads)
    learned = sum(len(group["params"]) for group in (kernels, rest))
    assert learned == len(list(network.parameters()))


def test_adams_part_takes_the_steps_of_torchs_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    muon = Muon([{"params": [ours], "peak_lr": 0.1, "adam": True}])
    adam = torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99))
    for _ in range(5):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        set_learning_rate(muon, 0.5)
        muon.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
