"""What can be looked at inside the served models, opened when somebody first looks.

A graph that gives every layer's output is a second one in memory, so a model that nobody looks
into has none. Its answers are held to the golden ones, as those of the graph that predicts are.
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
        artifact: whose they are.
        layers: computes what they give.
        classifier: the last layer's weights `[classes,channels]`, float32, where nothing but
            global average pooling lies between it and the last feature map.
    """

    artifact: Artifact
    layers: Layers
    classifier: NDArray[np.float32] | None

    @property
    def first_convolution(self) -> str | None:
        """The name of the first layer if it is a convolution, whose filters see the colours."""
        first = self.artifact.manifest.layers[0]
        return first.name if first.window is not None else None

    def weights_of(self, class_id: int) -> NDArray[np.float32]:
        """Return the last layer's weights for a class, float32 `[channels]`.

        Raises:
            ArtifactError: the model has no such layer, which its outputs say it has.
        """
        if self.classifier is None:
            raise ArtifactError(f"{self.artifact.path / LAYERS}: holds no {CLASSIFIER}")
        weights: NDArray[np.float32] = self.classifier[class_id]
        return weights


class Insides:
    """The models that somebody has looked into. Safe to use from several threads."""

    def __init__(self) -> None:
        self._opened: dict[str, Inside] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def open(self, artifact: Artifact) -> Inside:
        """Return a model's layers.

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
    """A layer that can be shown: its name, and the shape of what it gives for one image."""

    name: str
    shape: tuple[int, ...]


def find_layer(artifact: Artifact, name: str | None) -> Shown:
    """Return a layer, the first one if none is named; `pixels`, the normalised image, is one too.

    Raises:
        NothingToSee: the model was exported without its layers.
        UnknownLayer: there is none of this name; the message lists those that there are.
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
    """Return what a layer adds to each of its channels, float32 `[channels]`, if it does."""
    if LAYERS not in artifact.manifest.files:
        return None
    return recent_arrays(artifact, LAYERS).get(BIAS.format(layer))
