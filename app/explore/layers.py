"""The layers of the served models, opened at the first request that shows them.

The graph with the outputs of every layer is a second one in memory, so it is loaded only for models
that are looked into. It must give the golden answers, as the graph that predicts must.
"""

import threading
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact, recent_arrays
from app.artifact.files import BIAS, CLASSIFIER, LAYERS, PIXELS
from app.errors import ArtifactError, NothingToSee, UnknownLayer
from app.inference.backends import Layers, open_layers


@dataclass(frozen=True)
class Inside:
    """One model's layers.

    Attributes:
        artifact: the model directory.
        layers: computes the layers' outputs.
        classifier: the last layer's weights `[classes,channels]`, float32, if only global average
            pooling lies between it and the last feature map.
    """

    artifact: Artifact
    layers: Layers
    classifier: NDArray[np.float32] | None

    @property
    def first_convolution(self) -> str | None:
        """The name of the first layer if it is a convolution, whose inputs are colours."""
        first = self.artifact.manifest.layers[0]
        return first.name if first.window is not None else None

    def weights_of(self, class_id: int) -> NDArray[np.float32]:
        """Return the last layer's weights for a class, float32 `[channels]`.

        Raises:
            ArtifactError: the file lacks the weights, although the model's outputs require them.
        """
        if self.classifier is None:
            raise ArtifactError(f"{self.artifact.path / LAYERS}: holds no {CLASSIFIER}")
        weights: NDArray[np.float32] = self.classifier[class_id]
        return weights


class Insides:
    """The opened layers of all models. Safe to use from several threads."""

    def __init__(self) -> None:
        self._opened: dict[str, Inside] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def open(self, artifact: Artifact) -> Inside:
        """Return a model's layers; open them at the first call.

        Raises:
            NothingToSee: the model was exported without them.
            ArtifactError: its files are damaged.
        """
        _check_layers_kept(artifact)
        ref = artifact.ref
        with self._locks[ref]:
            if ref not in self._opened:
                classifier = artifact.arrays(LAYERS).get(CLASSIFIER)
                self._opened[ref] = Inside(artifact, open_layers(artifact), classifier)
            return self._opened[ref]


@dataclass(frozen=True)
class Shown:
    """A layer that can be shown: its name, and the shape of its output for one image."""

    name: str
    shape: tuple[int, ...]


def find_layer(artifact: Artifact, name: str | None) -> Shown:
    """Return a layer by name, or the first layer.

    The name `pixels` stands for the normalised image.

    Raises:
        NothingToSee: the model was exported without its layers.
        UnknownLayer: no layer has this name; the message lists the layers.
    """
    _check_layers_kept(artifact)
    layers = [Shown(layer.name, layer.shape) for layer in artifact.manifest.layers]
    if name is None:
        return layers[0]
    layers.insert(0, Shown(PIXELS, (3, *artifact.manifest.image_size)))
    for layer in layers:
        if layer.name == name:
            return layer
    names = ", ".join(layer.name for layer in layers)
    raise UnknownLayer(f"no layer {name[:64]!r}; there are: {names}")


def _check_layers_kept(artifact: Artifact) -> None:
    if LAYERS not in artifact.manifest.files:
        raise NothingToSee(
            f"{artifact.ref} was exported without its layers; "
            "`convscope-train export` adds them today"
        )


def biases_of(artifact: Artifact, layer: str) -> NDArray[np.float32] | None:
    """Return a layer's biases, float32 `[channels]`, or None if it has none."""
    if LAYERS not in artifact.manifest.files:
        return None
    return recent_arrays(artifact, LAYERS).get(BIAS.format(layer))
