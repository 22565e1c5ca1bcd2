"""Trained networks, read from the folders of runs and of models."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from app.artifact.directory import read_artifact
from app.errors import ConvscopeError
from app.inference.backends.torchscript import load_graph
from training.data.annotated import HeldOut
from training.data.dataset import Source
from training.data.scenes import SceneSource
from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run import checkpoint

_PREFIX = "plain."
"""Begins the name of a network's weight in a graph (`training.export.graphs.ServedNetwork`)."""

_NARROW = ".parametrizations.weight.original"
"""Ends the name of a weight that is stored in 16 bits (`training.export.half_weights`)."""

_NORMALIZATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

_MEASURED = 1000
"""The most images that measure the statistics of a folded normalisation."""


@dataclass(frozen=True)
class Trained:
    """A trained network and its training.

    Attributes:
        architecture: a name in `training.architectures`.
        classes: names by label.
        data_sha256: hash of the data set that it has seen.
        holdout: the part of the training images that it has not seen.
        split_seed: decided which these are.
        mean: of each channel, 0 to 1, by which its images are normalised.
        deviation: the same.
        weights: by the network's names for them.
        seconds: its training took, that of its own start included.
        hardware: that trained it.
    """

    architecture: str
    classes: tuple[str, ...]
    data_sha256: str
    holdout: float
    split_seed: int
    mean: list[float]
    deviation: list[float]
    weights: dict[str, Tensor]
    seconds: float
    hardware: str

    @cached_property
    def sha256(self) -> str:
        """A hash over names and values of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_unseen(self, recipe: Recipe, source: Source | SceneSource) -> None:
        """Raise unless the images that the recipe holds out were held out from this network too.

        Raises:
            RecipeError: it has learned from some of them.
        """
        made_of = source.made_of if isinstance(source, SceneSource) else None
        kept = made_of or HeldOut(source.sha256, recipe.holdout, recipe.split_seed)
        other_seed = kept.holdout > 0 and kept.split_seed != self.split_seed
        if self.data_sha256 == kept.sha256 and (kept.holdout > self.holdout or other_seed):
            scenes = " for scenes to choose with" if made_of else ""
            raise RecipeError(
                f"it has learned from images that holdout {kept.holdout} and split_seed "
                f"{kept.split_seed} would hold out{scenes}; it held out {self.holdout} by "
                f"split_seed {self.split_seed}"
            )


def read_trained(folder: Path) -> Trained:
    """Read the newest checkpoint of a run, or a model as `export` writes it.

    Raises:
        RunError: the folder holds neither, or it cannot be read.
    """
    try:
        return _read_run(folder) or _read_model(folder)
    except ConvscopeError as exc:
        raise RunError(str(exc)) from exc


@torch.no_grad()
def load_trained(network: nn.Module, weights: dict[str, Tensor], images: Tensor) -> None:
    """Load the weights of a trained network.

    Args:
        network: of the same architecture.
        weights: by the network's names for them.
        images: normalised float `[N,3,H,W]`, on the network's device. Where the export made a
            normalisation part of a convolution, their statistics take it out again.

    Raises:
        RunError: the network has other weights than these.
    """
    weights, hooks = dict(weights), []
    own = network.state_dict()
    for name, norm_name, layer, norm in _folded(network, weights):
        bias = weights[f"{name}.bias"].to(images)
        if layer.bias is None:
            del weights[f"{name}.bias"]
        else:
            weights[f"{name}.bias"] = torch.zeros_like(bias)
        kernels = weights[f"{name}.weight"].to(images)
        scale = kernels.flatten(1).norm(dim=1)
        weights[f"{name}.weight"] = kernels / scale[:, None, None, None]
        kept = (f"{norm_name}.{part}" for part in _NORMALIZATION)
        weights |= {part: own[part] for part in kept if part in own}
        hooks.append(norm.register_forward_pre_hook(partial(_unfold, scale, bias)))
    checkpoint.load_weights(network, weights)
    network.eval()
    if hooks:
        network(images[:_MEASURED])
    for hook in hooks:
        hook.remove()


def _read_run(folder: Path) -> Trained | None:
    """Return the network of a run's newest checkpoint, or None if the folder has none."""
    last = checkpoint.newest(folder)
    if last is None:
        return None
    state = last.state
    return Trained(
        architecture=state.recipe.architecture,
        classes=state.classes,
        data_sha256=state.data_sha256,
        holdout=state.recipe.holdout,
        split_seed=state.recipe.split_seed,
        mean=state.mean,
        deviation=state.deviation,
        weights=last.read(checkpoint.NETWORK),
        seconds=state.training_seconds,
        hardware=state.hardware,
    )


def _read_model(folder: Path) -> Trained:
    """Return the network of a model's TorchScript file."""
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    held: dict[str, Tensor] = load_graph(artifact, torch.device("cpu")).state_dict()
    scale, shift = (held[name].flatten()[:3] for name in ("scale", "shift"))
    return Trained(
        architecture=manifest.architecture,
        classes=manifest.classes,
        data_sha256=manifest.data.sha256,
        holdout=manifest.recipe.get("holdout", 0.0),
        split_seed=manifest.recipe.get("split_seed", 0),
        mean=(shift / scale / 255).tolist(),
        deviation=(1 / scale / 255).tolist(),
        weights={
            name.removeprefix(_PREFIX).replace(_NARROW, ".weight"): tensor
            for name, tensor in held.items()
            if name.startswith(_PREFIX)
        },
        seconds=manifest.training_seconds,
        hardware=manifest.hardware,
    )


def _folded(
    network: nn.Module, weights: dict[str, Tensor]
) -> Iterator[tuple[str, str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution that a normalisation was made part of, and that, after their names."""
    for path, layers in network.named_modules():
        if isinstance(layers, nn.Sequential):
            for (first, layer), (second, norm) in pairwise(layers.named_children()):
                name, norm_name = (f"{path}.{part}".lstrip(".") for part in (first, second))
                kept = f"{norm_name}.running_mean" in weights
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and not kept:
                    yield name, norm_name, layer, norm


def _unfold(scale: Tensor, bias: Tensor, norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
    """Set a normalisation so that its output is `scale` times its input plus `bias`."""
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    norm.running_mean, norm.running_var = mean, variance
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(bias + scale * mean)
