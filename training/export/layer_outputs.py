"""The outputs of a network's layers while it runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from app.artifact.files import PIXELS


@contextmanager
def outputs_of(
    network: nn.Module, layers: Sequence[str], images: int
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of layers, by name, whenever the network runs within the context.

    Within it, no activation works in place, so no output is overwritten.

    Args:
        network: has the layers.
        layers: names of layers, or `pixels` for the network's input.
        images: how many outputs of a batch to keep, from the first; the rest are further views.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, *call: Any) -> None:
        tensor = call[1][0] if name == PIXELS else call[2]
        found[name] = tensor[:images]

    hooks = [
        network.register_forward_pre_hook(partial(keep, name))
        if name == PIXELS
        else network.get_submodule(name).register_forward_hook(partial(keep, name))
        for name in layers
    ]
    overwriting = [module for module in network.modules() if getattr(module, "inplace", False)]
    try:
        _set_inplace(overwriting, False)
        yield found
    finally:
        _set_inplace(overwriting, True)
        for hook in hooks:
            hook.remove()


def _set_inplace(modules: Sequence[nn.Module], inplace: bool) -> None:
    for module in modules:
        module.inplace = inplace  # type: ignore[assignment]
