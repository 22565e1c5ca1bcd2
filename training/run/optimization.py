"""A recipe's optimizer and learning rate schedule. Nothing here knows of data."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.recipes import Recipe

MUON_MOMENTUM = 0.6
MUON_ADAMW_MOMENTUM = 0.9
"""Of Muon's part of `muon-adamw`."""

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.99), 1e-8
SGD_MOMENTUM = 0.85
WARM_UP = 0.05
"""The part of all steps in which the rate of `cosine` rises."""


def schedule(recipe: Recipe, images: int, epoch: int, step: int) -> float:
    """Return a step's learning rate as a part of the peak; epochs and steps count from 1.

    `one-cycle` rises from 1/25 along a cosine in the first 30% of all steps and falls to zero
    along a cosine in the rest (Smith & Topin 2018, with the cosine of Loshchilov & Hutter 2017);
    `cosine` rises along a line from zero in the first 5% and falls likewise; `linear` falls along a
    line from one to zero.

    Args:
        recipe: names the schedule.
        images: the number of images in an epoch.
        epoch: the step's epoch.
        step: the step's number within the epoch.
    """
    if recipe.schedule == "constant":
        return 1.0
    steps = math.ceil(images / recipe.candidates)
    progress = ((epoch - 1) * steps + step - 1) / (recipe.epochs * steps)
    if recipe.schedule == "linear":
        return 1 - progress
    if recipe.schedule == "cosine":
        if progress < WARM_UP:
            return progress / WARM_UP
        return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2
    low = 1 / 25
    if progress < 0.3:
        return low + (1 - low) * (1 - math.cos(math.pi * progress / 0.3)) / 2
    return (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, part: float) -> None:
    """Set the learning rate of every parameter group to a part of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = part * group["peak_lr"]


def make_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for all weights that learn.

    With Adam and AdamW, weight decay acts on matrices and kernels alone.
    """
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]]
    if recipe.optimizer in {"muon", "muon-adamw"}:
        make_groups = _muon_groups if recipe.optimizer == "muon" else _muon_adamw_groups
        dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
        return Muon(make_groups(recipe, network, learned), dtype)
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    for group in groups:
        group["peak_lr"] = recipe.learning_rate
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.learning_rate, fused=True)


class Muon(torch.optim.Optimizer):
    """Muon for kernels and matrices (Jordan 2024), SGD with Nesterov's momentum for the rest.

    In a group with `orthogonal` set, a step's matrix (outputs × all else) is made nearly
    orthogonal, and every weight tensor keeps the norm of an orthogonal matrix with its number of
    outputs, as in airbench's recipe. The other groups take SGD's steps; `weight_decay` is the part
    that a step at the peak rate takes away. In a group with `adam` set, they are Adam's (Kingma &
    Ba 2015).

    Args:
        groups: of parameters.
        dtype: that matrices are multiplied in. A processor without bfloat16 takes five times as
            long with it as with float32.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        defaults = {
            "orthogonal": False,
            "adam": False,
            "momentum": MUON_MOMENTUM,
            "weight_decay": 0.0,
        }
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # noqa: ARG002
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["adam"]:
                    self._step_as_adam(parameter, parameter.grad, group["lr"])
                    continue
                momentum = group["momentum"] if group["orthogonal"] else SGD_MOMENTUM
                gradient = self._with_momentum(parameter, parameter.grad, momentum)
                if group["orthogonal"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    matrix = gradient.reshape(len(gradient), -1).to(self.dtype)
                    step = orthogonalize(matrix).view_as(parameter)
                    parameter.add_(step, alpha=-group["lr"])
                else:
                    parameter.mul_(1 - group["weight_decay"] * group["lr"] / group["peak_lr"])
                    parameter.add_(gradient, alpha=-group["lr"])

    def _step_as_adam(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if "steps" not in state:
            state["steps"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["steps"] += 1
        steps, (first, second) = state["steps"].item(), ADAM_BETAS
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (state["square"] / (1 - second**steps)).sqrt_().add_(ADAM_EPSILON)
        parameter.addcdiv_(state["mean"], spread, value=-rate / (1 - first**steps))

    def _with_momentum(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Return the gradient with Nesterov's momentum."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        velocity: Tensor = state["momentum"]
        velocity.mul_(momentum).add_(gradient)
        return gradient.add(velocity, alpha=momentum)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return float32 `[M,N]` near the closest matrix with orthonormal rows or columns.

    Newton-Schulz iteration of degree five with the coefficients of Jordan (2024). Singular values
    end near one, not at one, which is enough for Muon. Multiplies in the type of the matrix.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


def _muon_adamw_groups(
    recipe: Recipe, network: nn.Module, learned: list[nn.Parameter]
) -> list[dict[str, Any]]:
    """Group the weights: kernels and matrices, and all else.

    Layers with a bias are not followed by a normalisation; their scale matters, so their weights
    are among all else.
    """
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    inner = {
        module.weight
        for module in network.modules()
        if isinstance(module, layers) and module.bias is None
    }
    others = [parameter for parameter in learned if parameter not in inner]
    return [
        {
            "params": [parameter for parameter in learned if parameter in inner],
            "peak_lr": recipe.learning_rate,
            "orthogonal": True,
            "momentum": MUON_ADAMW_MOMENTUM,
        },
        {
            "params": others,
            "peak_lr": recipe.head_learning_rate,
            "adam": True,
        },
    ]


def _muon_groups(
    recipe: Recipe, network: nn.Module, learned: list[nn.Parameter]
) -> list[dict[str, Any]]:
    """Group the weights: kernels and inner matrices, biases and scales, the last layer's matrix.

    The loss is a batch's mean. The recipe's rates of the last two groups are for its sum, so that
    one rate suits every batch size.
    """
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1].weight
    inner = [p for p in learned if p.ndim > 1 and p is not head]
    biases = [p for p in learned if p.ndim <= 1]
    summed = recipe.batch_size
    decay = recipe.weight_decay
    return [
        {"params": inner, "peak_lr": recipe.learning_rate, "orthogonal": True},
        {
            "params": biases,
            "peak_lr": recipe.bias_learning_rate * summed,
            "weight_decay": decay,
        },
        {"params": [head], "peak_lr": recipe.head_learning_rate * summed, "weight_decay": decay},
    ]
