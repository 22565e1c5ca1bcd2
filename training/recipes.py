"""Every number in which one training run can differ from another, as frozen records.

A recipe knows nothing of data or of the loop. The named ones are what `convscope-train train NAME`
runs; each field can be overridden on the command line.
"""

import re
from dataclasses import asdict, dataclass, fields, replace
from inspect import cleandoc
from typing import Any, Literal, Self, get_args

from training.errors import RecipeError

Optimizer = Literal["adam", "adamw", "muon"]
Schedule = Literal["constant", "one-cycle", "linear"]
Flip = Literal["off", "random", "alternating"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        architecture: a name in `training.architectures`.
        epochs: passes over the training images.
        batch_size: images a step; the last, smaller batch of an epoch is used too.
        micro_batch: images whose passes forward and back are made at once, and which a batch
            normalisation sees together; their gradients are added up. 0: the whole batch.
        optimizer: `adam` (Kingma & Ba 2015), `adamw` (Loshchilov & Hutter 2019) or `muon`
            (Jordan 2024) for kernels with Nesterov's SGD for biases and the last layer.
        learning_rate: the constant rate, or the schedule's peak; with `muon`, of the kernels.
        bias_learning_rate: with `muon`, of biases and scales, for the sum of a batch's losses.
        head_learning_rate: with `muon`, of the last layer, likewise.
        weight_decay: the optimizer's own; not applied to biases and normalisation layers. With
            `muon`, the part of biases and last layer that a step at the peak takes away.
        schedule: `constant`, `one-cycle` (Smith & Topin 2018; 30% cosine warm-up from peak/25,
            then cosine to zero) or `linear` (from the peak to zero).
        label_smoothing: weight of the uniform distribution in the target (Szegedy et al. 2016).
        dropout: probability at the architecture's dropout places.
        flip: mirror training images left to right: each with probability one half (`random`), or
            a random half in odd epochs and the others in even ones (`alternating`, Jordan 2024).
        translate: shift each training image by up to this many pixels both ways, the border
            filled by reflection.
        crop: side in pixels of the part of each training image, anywhere in it, that is learned
            from in the first epochs, which makes them cheaper. 0: all of it.
        cropped: part of the epochs that these are.
        cutout: cover a square of so many pixels a side at a random place of each training image
            with the mean colour (DeVries & Taylor 2017).
        brightness: make each training image brighter or darker by up to this many deviations.
        contrast: stretch or shrink its distance from the mean colour by up to this part.
        noise: add normal noise to each training image, of a deviation up to this, of 255.
        proxy: architecture of a small network that is trained beside and chooses what the network
            learns from: of each batch the part `selected` with the highest loss (after airbench96,
            Jordan 2024). Empty: none.
        selected: that part; `batch_size` images are chosen among `batch_size / selected`.
        holdout: part of the training images held out, by class, for selection and calibration.
        split_seed: which images are held out; apart from `seed`, so that runs compare.
        seed: initial weights, order of the images, augmentation and dropout.
        precision: of convolutions and matrix products; `auto` is bfloat16 where the hardware
            is faster in it, else float32. Weights and the loss are always float32.
    """

    architecture: str
    epochs: int = 30
    batch_size: int = 128
    micro_batch: int = 0
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    bias_learning_rate: float = 0.0
    head_learning_rate: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    label_smoothing: float = 0.0
    dropout: float = 0.0
    flip: Flip = "off"
    translate: int = 0
    crop: int = 0
    cropped: float = 0.0
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    proxy: str = ""
    selected: float = 1.0
    holdout: float = 0.1
    split_seed: int = 0
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, 1, 10_000)
        _check("batch_size", self.batch_size, 1, 65_536)
        _check("micro_batch", self.micro_batch, 0, 65_536)
        _check("brightness", self.brightness, 0, 10)
        _check("contrast", self.contrast, 0, 1)
        _check("noise", self.noise, 0, 255)
        _check("learning_rate", self.learning_rate, 1e-9, 100)
        _check("bias_learning_rate", self.bias_learning_rate, 0, 100)
        _check("head_learning_rate", self.head_learning_rate, 0, 100)
        _check("weight_decay", self.weight_decay, 0, 1 if self.optimizer == "muon" else 10)
        _check("label_smoothing", self.label_smoothing, 0, 0.99)
        _check("dropout", self.dropout, 0, 0.99)
        _check("translate", self.translate, 0, 31)
        _check("crop", self.crop, 0, 31)
        _check("cropped", self.cropped, 0, 1)
        _check("cutout", self.cutout, 0, 31)
        _check("selected", self.selected, 0.01, 1)
        _check("holdout", self.holdout, 0, 0.9)
        _check("split_seed", self.split_seed, 0, 2**31 - 1)
        _check("seed", self.seed, 0, 2**31 - 1)
        for name, kind in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("flip", Flip),
            ("precision", Precision),
        ):
            if getattr(self, name) not in get_args(kind):
                raise RecipeError(
                    f"{name} is {getattr(self, name)!r}; it can be {' or '.join(get_args(kind))}"
                )
        for name in ("bias_learning_rate", "head_learning_rate"):
            rate = getattr(self, name)
            if (rate > 0) != (self.optimizer == "muon"):
                raise RecipeError(
                    f"{name} is {rate} with {self.optimizer}; it must be above 0 with muon, and 0 "
                    "with any other optimizer"
                )
        if (self.crop > 0) != (self.cropped > 0):
            raise RecipeError(
                f"crop is {self.crop} and cropped is {self.cropped}; both are 0 or neither"
            )
        if (self.selected < 1) != bool(self.proxy):
            raise RecipeError(
                f"selected is {self.selected} and proxy is {self.proxy!r}; "
                "it takes a proxy to select a part of the images"
            )

    @property
    def candidates(self) -> int:
        """Images that a step looks at, to learn from `batch_size` of them."""
        return round(self.batch_size / self.selected)

    @property
    def cropped_epochs(self) -> int:
        """How many of the first epochs learn from parts of the images."""
        return round(self.epochs * self.cropped)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the recipe with these fields; what a newer version has added is at its default.

        Raises:
            RecipeError: a field is unknown, or holds a value that is not allowed.
        """
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown or "architecture" not in values:
            raise RecipeError(f"not the fields of a recipe: {sorted(unknown or ['architecture'])}")
        return cls(**values)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name} is {value}; it can be {low} to {high}")


AUGMENTED = Recipe(
    "simple-cnn",
    epochs=60,
    batch_size=256,
    optimizer="adamw",
    learning_rate=4e-3,
    weight_decay=0.05,
    schedule="one-cycle",
    label_smoothing=0.05,
    dropout=0.3,
    flip="random",
    translate=4,
)
"""The usual way of today: AdamW on one cycle with shifts, flips and smoothed labels. Its numbers
are ours, chosen on held-out images."""

SPEEDNET = Recipe(
    "speednet",
    epochs=10,
    batch_size=1536,
    micro_batch=512,
    optimizer="muon",
    learning_rate=0.205,
    bias_learning_rate=0.057,
    head_learning_rate=0.54,
    weight_decay=0.009,
    schedule="linear",
    label_smoothing=0.09,
    flip="alternating",
    translate=2,
    crop=28,
    cropped=0.7,
    brightness=0.14,
    contrast=0.13,
    holdout=0.05,
)
"""After airbench94 with Muon (Jordan 2024) and the numbers that a later speedrun found for it
(Hiverge 2025). Normalisation sees 512 images: more do not fit a processor's cache. Ten epochs, of
which seven are cropped, cost what eight whole ones do."""

NORMALIZED = Recipe(
    "resnet20",
    epochs=30,
    batch_size=250,
    optimizer="muon",
    learning_rate=0.04,
    bias_learning_rate=1e-3,
    head_learning_rate=5e-4,
    weight_decay=5e-4,
    schedule="linear",
    flip="alternating",
    translate=4,
    crop=24,
    cropped=0.7,
)
"""For the published networks with batch normalisation: speednet's optimizer, at rates that are
ours, chosen on held-out images. Parts of 24 pixels cost 56% of the whole."""

RECIPES: dict[str, Recipe] = {
    "simple-cnn": Recipe("simple-cnn"),
    "fc": Recipe("fc"),
    "simple-cnn-augmented": AUGMENTED,
    "fc-augmented": replace(AUGMENTED, architecture="fc", label_smoothing=0.0, dropout=0.0),
    "alexnet": replace(
        AUGMENTED,
        architecture="alexnet",
        epochs=15,
        batch_size=250,
        learning_rate=5e-4,
        label_smoothing=0.1,
        dropout=0.5,
    ),
    "vgg16": replace(NORMALIZED, architecture="vgg16", epochs=8, crop=0, cropped=0),
    "resnet20": NORMALIZED,
    "plain20": replace(NORMALIZED, architecture="plain20"),
    "resnet18": replace(NORMALIZED, architecture="resnet18", epochs=12),
    "efficientnet-b0": replace(
        AUGMENTED,
        architecture="efficientnet-b0",
        epochs=24,
        batch_size=128,
        crop=24,
        cropped=0.7,
        learning_rate=3e-3,
        label_smoothing=0.0,
        dropout=0.2,
        precision="float32",
    ),
    "speednet": SPEEDNET,
    "fast": replace(SPEEDNET, architecture="fast", epochs=40, translate=4, noise=12),
    "speednet-95": replace(
        SPEEDNET,
        architecture="speednet-95",
        epochs=24,
        translate=4,
        noise=8,
    ),
    "speednet-96": replace(
        SPEEDNET,
        architecture="speednet-96",
        epochs=56,
        cutout=12,
        translate=4,
        proxy="speednet-proxy",
        selected=0.5,
        noise=6,
        holdout=0.02,
    ),
}


def meanings_of_fields() -> dict[str, str]:
    """Return what each field of a recipe means, as its documentation says."""
    _, _, attributes = cleandoc(Recipe.__doc__ or "").partition("Attributes:\n")
    said = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in said}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        RecipeError: there is none; the message lists those that there are.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}") from None
