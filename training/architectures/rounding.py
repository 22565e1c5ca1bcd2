"""Weights rounded to float16 values, so that a file can store them in 16 bits without loss.

Biases and normalisation stay as they are.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.errors import ExportError

LARGEST = torch.finfo(torch.float16).max


@torch.no_grad()
def rounded(network: nn.Module) -> nn.Module:
    """Round a network's weights to float16 values, for evaluation; return the network.

    A normalisation that follows a convolution becomes part of it first; an exporter would do so
    after the rounding.

    Raises:
        ExportError: a weight is too large; the message names it and the limit.
    """
    for module in network.eval().modules():
        if isinstance(module, nn.Sequential):
            _fold_normalisation(module)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            largest = parameter.abs().max().item()
            if not largest <= LARGEST:  # nor is NaN
                raise ExportError(f"{name} holds {largest}; the limit of a float16 is {LARGEST}")
            parameter.copy_(parameter.half().float())
    return network


def _fold_normalisation(layers: nn.Sequential) -> None:
    for (name, layer), (next_name, following) in pairwise(layers.named_children()):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(layers, name, fuse_conv_bn_eval(layer, following))
            setattr(layers, next_name, nn.Identity())
