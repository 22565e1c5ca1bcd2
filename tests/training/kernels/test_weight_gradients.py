from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.kernels import weight_gradients
from training.kernels.weight_gradients import NineProducts, weight_gradient
from training.recipes import Arithmetic, find_recipe
from training.run.checkpoint import Learner
from training.run.lessons import Batch
from training.run.optimization import make_optimizer
from training.run.train import learn


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `weight_gradient` was given."""
    calls: list[int] = []

    def recorded(images: Tensor, gradient: Tensor) -> Tensor:
        calls.append(len(images))
        return weight_gradient(images, gradient)

    monkeypatch.setattr(weight_gradients, "weight_gradient", recorded)
    torch.manual_seed(0)
    return calls


def _images(channels: int, height: int = 5, width: int = 5, count: int = 6) -> Tensor:
    return torch.randn(count, channels, height, width)


def _output_and_gradients(
    call: Callable[[Tensor], Tensor], images: Tensor, *, nine: bool
) -> list[Tensor]:
    """Return a layer's output, its images' gradient and those of its weights, in bfloat16."""
    images = images.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), NineProducts() if nine else nullcontext():
        output = call(images)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    assert images.grad is not None
    found = [output.detach().float(), images.grad]
    for weight in call.parameters() if isinstance(call, nn.Module) else ():
        if weight.grad is not None:
            found.append(weight.grad)
            weight.grad = None
    return found


@pytest.mark.parametrize(("height", "width", "count"), [(1, 1, 6), (3, 5, 6), (8, 8, 6), (4, 4, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nine_products_are_the_gradient_of_a_convolution(
    height: int, width: int, count: int, layout: torch.memory_format
) -> None:
    images = _images(7, height, width, count).double().to(memory_format=layout)
    weight = torch.randn(4, 7, 3, 3, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(images, weight, padding=1)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    assert weight.grad is not None
    torch.testing.assert_close(weight_gradient(images, gradient), weight.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [1, "same"])
def test_a_deep_layer_learns_as_it_does_without(
    calls: list[int], padding: int | str, *, bias: bool
) -> None:
    layer = nn.Conv2d(128, 130, 3, padding=padding, bias=bias)
    images = _images(128)
    plain = _output_and_gradients(layer, images, nine=False)
    assert calls == []
    nine = _output_and_gradients(layer, images, nine=True)
    assert calls == [6]
    assert len(nine) == len(plain) == (4 if bias else 3)
    for a, b in zip(nine, plain, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() <= 0.01 * b.norm()  # bfloat16 has steps of 0.8%


def _deep(**options: object) -> Callable[[], nn.Conv2d]:
    settings: dict[str, object] = {"kernel_size": 3, "padding": "same"} | options
    return lambda: nn.Conv2d(128, 128, **settings)  # type: ignore[arg-type]


def _frozen() -> nn.Conv2d:
    return _deep(bias=False)().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("make", "images"),
    [
        (_deep(stride=2, padding=1), (128, 5, 5)),
        (_deep(dilation=2), (128, 5, 5)),
        (_deep(padding=0), (128, 5, 5)),
        (_deep(kernel_size=5), (128, 5, 5)),
        (_deep(groups=2), (128, 5, 5)),
        (lambda: nn.Conv2d(64, 128, 3, padding=1), (64, 5, 5)),
        (lambda: nn.Conv2d(128, 64, 3, padding=1), (128, 5, 5)),
        (_deep(), (128, 9, 4)),
        (_deep(), (128, 4, 9)),
        (_frozen, (128, 5, 5)),
        (lambda: lambda x: F.conv2d(x, torch.ones(128, 128, 3, 3)), (128, 5, 5)),
    ],
)
def test_any_other_convolution_is_left_as_it_is(
    calls: list[int],
    make: Callable[[], Callable[[Tensor], Tensor]],
    images: tuple[int, int, int],
) -> None:
    call, given = make(), _images(*images)
    plain = _output_and_gradients(call, given, nine=False)
    nine = _output_and_gradients(call, given, nine=True)
    assert calls == []
    for a, b in zip(nine, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_one_image_without_a_batch_is_left_as_it_is(calls: list[int]) -> None:
    _output_and_gradients(_deep()(), torch.randn(128, 5, 5), nine=True)
    assert calls == []


@pytest.mark.parametrize(
    ("precision", "amx", "made"),
    [("bfloat16", True, [6]), ("bfloat16", False, []), ("float32", True, [])],
)
def test_a_step_in_bfloat16_makes_them_where_there_is_amx(
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
    precision: Arithmetic,
    made: list[int],
    *,
    amx: bool,
) -> None:
    monkeypatch.setattr(weight_gradients, "has_amx", lambda: amx)
    recipe = find_recipe("resnet20").replace(precision=precision)
    network = nn.Sequential(
        nn.Conv2d(3, 128, 1), nn.Conv2d(128, 128, 3, padding=1), nn.Flatten(), nn.Linear(3200, 10)
    )
    learner = Learner(recipe, network, network, make_optimizer(recipe, network))
    learn(learner, Batch(_images(3), torch.arange(6)), rate=1.0)
    assert calls == made
