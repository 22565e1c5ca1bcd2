"""Optimizers and learning rate schedules by recipe; knows nothing of data."""

import math

import torch
from torch import nn

from training.recipes import Recipe


def learning_rate(recipe: Recipe, images: int, epoch: int, step: int) -> float:
    """Return the learning rate of a step; epochs and steps count from 1.

    `one-cycle` rises from peak/25 along a cosine in the first 30% of all steps and falls to zero
    along a cosine in the rest (Smith & Topin 2018, with the cosine of Loshchilov & Hutter 2017).
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    steps = math.ceil(images / recipe.batch_size)
    progress = ((epoch - 1) * steps + step - 1) / (recipe.epochs * steps)
    low = recipe.learning_rate / 25
    if progress < 0.3:
        return low + (recipe.learning_rate - low) * (1 - math.cos(math.pi * progress / 0.3)) / 2
    return recipe.learning_rate * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer, with weight decay on matrices and kernels alone."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.learning_rate, fused=True)
