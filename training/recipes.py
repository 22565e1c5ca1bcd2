"""Recipes: every number in which one training run can differ from another.

A recipe knows nothing of data or of the loop. `convscope-train train NAME` runs a named recipe; the
command line has an option for each field.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from training.errors import RecipeError

Optimizer = Literal["adam", "adamw", "muon", "muon-adamw"]
Schedule = Literal["constant", "one-cycle", "linear", "cosine"]
Flip = Literal["off", "random", "alternating"]
Arithmetic = Literal["auto", "float32", "bfloat16"]

LARGEST_SEED = 2**31 - 1


class Recipe(BaseModel):
    """One training run.

    A recipe cannot be changed; `replace` returns another one. Unknown fields, values of another
    type and values beyond their limits raise RecipeError with the field, the value and the limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    architecture: str = Field(description="A name in `training.architectures`.")
    epochs: int = Field(default=30, ge=1, le=10_000, description="Passes over the training images.")
    batch_size: int = Field(
        default=128,
        ge=1,
        le=65_536,
        description="Images in a step. The last, smaller batch of an epoch is used too.",
    )
    micro_batch: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="Images in one forward and backward pass, over which batch normalisation "
        "averages. The gradients of a batch's passes are added up. 0: the whole batch.",
    )
    optimizer: Optimizer = Field(
        default="adam",
        description="`adam` (Kingma & Ba 2015), `adamw` (Loshchilov & Hutter 2019), `muon` "
        "(Jordan 2024): Muon for kernels, SGD with Nesterov's momentum for biases and the last "
        "layer; or `muon-adamw`: AdamW, without decay, for these.",
    )
    learning_rate: float = Field(
        default=1e-3,
        ge=1e-9,
        le=100,
        description="The constant rate, or the schedule's peak. With `muon`, the kernels' rate.",
    )
    bias_learning_rate: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="With `muon`, the rate of biases and scales, for the sum of a batch's losses.",
    )
    head_learning_rate: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="With `muon`, the rate of the last layer, for the sum of a batch's losses. "
        "With `muon-adamw`, the rate of all that Muon does not move.",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="The optimizer's weight decay, for kernels and matrices alone. With `muon`, "
        "the part of biases and last layer that a step at the peak rate takes away, at most 1.",
    )
    schedule: Schedule = Field(
        default="constant",
        description="`constant`, `one-cycle` (Smith & Topin 2018: 30% cosine warm-up from peak/25, "
        "then cosine to zero), `cosine` (5% linear warm-up, then the same) or `linear` (from the "
        "peak to zero).",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        le=0.99,
        description="Weight of the uniform distribution in the target (Szegedy et al. 2016).",
    )
    dropout: float = Field(
        default=0.0, ge=0, le=0.99, description="Probability at the architecture's dropout layers."
    )
    flip: Flip = Field(
        default="off",
        description="Mirror training images left to right: each with probability one half "
        "(`random`), or a random half in odd epochs and the others in even ones (`alternating`, "
        "Jordan 2024).",
    )
    translate: int = Field(
        default=0,
        ge=0,
        le=31,
        description="Shift each training image by up to this many pixels in each direction; "
        "reflection fills the border.",
    )
    crop: int = Field(
        default=0,
        ge=0,
        le=31,
        description="In the first epochs, learn from a random square of this many pixels a side of "
        "each training image, which makes these epochs cheaper. 0: whole images.",
    )
    cropped: float = Field(
        default=0.0, ge=0, le=1, description="The part of the epochs in which images are cropped."
    )
    cutout: int = Field(
        default=0,
        ge=0,
        le=31,
        description="Cover a random square of this many pixels a side of each training image with "
        "the mean colour (DeVries & Taylor 2017).",
    )
    brightness: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Make each training image brighter or darker by up to this many standard "
        "deviations.",
    )
    contrast: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Stretch or shrink each training image's distance from the mean colour by up "
        "to this part.",
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        le=255,
        description="Add normal noise to each training image, with a standard deviation of up to "
        "this, of 255.",
    )
    degraded: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Make this part of the training images worse, as pictures are that reach a "
        "service: compressed, blurred, noisy, pale, resampled (after Hendrycks & Dietterich 2019).",
    )
    height: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Of the pictures of a detector or segmenter, in pixels: a multiple of 16.",
    )
    width: int = Field(
        default=0, ge=0, le=4096, description="Of these pictures, a multiple of 16 as well."
    )
    turn: bool = Field(
        default=False,
        description="Turn each picture by 0, 90, 180 or 270 degrees: for those without an upper "
        "side.",
    )
    smallest: float = Field(
        default=1.0,
        ge=0.1,
        le=1,
        description="Reduce each picture to down to this part of its size.",
    )
    largest: float = Field(
        default=1.0, ge=1, le=4, description="Enlarge each picture to up to this times its size."
    )
    mosaic: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The part of the pictures that are put together from four (Bochkovskiy et al. "
        "2020).",
    )
    colour: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Change brightness, contrast and saturation of each picture by up to this "
        "part.",
    )
    start: str = Field(
        default="",
        description="Folder of a run or model of the same architecture, whose weights the run "
        "begins with. Its last layer is left out if it has other classes. A detector or segmenter "
        "begins with a run of its backbone too, such as yolo-backbone. Empty: none.",
    )
    start_part: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="The part of the start's weights in the run's final ones, which are a mean of "
        "both (Izmailov et al. 2018). 0: the run's alone.",
    )
    teacher: str = Field(
        default="",
        description="Folder of a run or model of the same classes, whose probabilities at "
        "temperature 1 for each image, as the network sees it, are learned instead of its label "
        "(Hinton et al. 2015). Empty: none.",
    )
    proxy: str = Field(
        default="",
        description="Architecture of a small network that is trained beside and chooses the images "
        "to learn from: the part `selected` of each batch with the highest loss (after airbench96, "
        "Jordan 2024). Empty: none.",
    )
    selected: float = Field(
        default=1.0,
        ge=0.01,
        le=1,
        description="The part that the proxy chooses: `batch_size` images of "
        "`batch_size / selected`.",
    )
    holdout: float = Field(
        default=0.1,
        ge=0,
        le=0.9,
        description="The part of each class's training images that is held out for selection and "
        "calibration.",
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="Decides which images are held out. Runs with different `seed` compare.",
    )
    averaged: float = Field(
        default=0.0,
        ge=0,
        le=0.99999,
        description="The run's final weights are a moving average (Polyak & Juditsky 1992), of "
        "which this part stays in each step. 0: the last weights.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="Decides initial weights, order of the images, augmentation and dropout.",
    )
    precision: Arithmetic = Field(
        default="auto",
        description="Arithmetic of convolutions and matrix products. `auto` is bfloat16 where the "
        "hardware is faster in it, else float32. Weights and loss are always float32.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn pydantic's errors into one RecipeError, which names the first."""
        try:
            return handler(values)
        except ValidationError as exc:
            raise RecipeError(cls._sentence(exc)) from exc

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        if self.optimizer == "muon" and self.weight_decay > 1:
            raise RecipeError(f"weight_decay is {self.weight_decay}; it can be 0 to 1 with muon")
        for name, optimizers in (
            ("bias_learning_rate", ("muon",)),
            ("head_learning_rate", ("muon", "muon-adamw")),
        ):
            rate = getattr(self, name)
            if (rate > 0) != (self.optimizer in optimizers):
                raise RecipeError(
                    f"{name} is {rate} with {self.optimizer}; it must be above 0 with "
                    f"{' or '.join(optimizers)}, and 0 with any other optimizer"
                )
        if (self.crop > 0) != (self.cropped > 0):
            raise RecipeError(
                f"crop is {self.crop} and cropped is {self.cropped}; both are 0 or neither"
            )
        if self.teacher and self.label_smoothing > 0:
            raise RecipeError(
                f"label_smoothing is {self.label_smoothing} and teacher is {self.teacher!r}; "
                "a teacher's answers are not smoothed"
            )
        if self.optimizer == "muon-adamw" and self.weight_decay > 0:
            raise RecipeError(f"weight_decay is {self.weight_decay}; with muon-adamw it is 0")
        if self.start_part > 0 and self.averaged > 0:
            raise RecipeError(
                f"start_part is {self.start_part} and averaged is {self.averaged}; one of them is 0"
            )
        if self.start_part > 0 and not self.start:
            raise RecipeError(f"start_part is {self.start_part} and start is empty")
        if (self.selected < 1) != bool(self.proxy):
            raise RecipeError(
                f"selected is {self.selected} and proxy is {self.proxy!r}; "
                "it takes a proxy to select a part of the images"
            )
        return self

    @property
    def candidates(self) -> int:
        """Images that a step looks at, to learn from `batch_size` of them."""
        return round(self.batch_size / self.selected)

    @property
    def cropped_epochs(self) -> int:
        """How many of the first epochs learn from cropped images."""
        return round(self.epochs * self.cropped)

    def replace(self, **changes: Any) -> Self:
        """Return a recipe with some fields changed, checked as any other.

        Raises:
            RecipeError: a field is unknown or its value is not allowed.
        """
        return type(self)(**self.model_dump() | changes)

    @classmethod
    def _sentence(cls, error: ValidationError) -> str:
        """Return field, value and limits of the first error."""
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if not name:
            return f"not a recipe: {first['input']!r}"
        if first["type"] == "missing":
            return f"not a recipe: it has no field {name}"
        if first["type"] == "extra_forbidden":
            return f"not a recipe: it has an unknown field {name}"
        value, limits = f"{name} is {first['input']!r}", cls.model_json_schema()["properties"][name]
        if "enum" in limits:
            return f"{value}; it can be {' or '.join(limits['enum'])}"
        if "minimum" in limits:
            whole = "a whole number from " if first["type"] == "int_type" else ""
            return f"{value}; it can be {whole}{limits['minimum']} to {limits['maximum']}"
        return f"{value}; it must be text"


SCENE_FIELDS = ("height", "width", "turn", "smallest", "largest", "mosaic", "colour")
"""Of detectors and segmenters alone."""

CLASSIFIER_FIELDS = (
    "label_smoothing",
    "translate",
    "crop",
    "cutout",
    "brightness",
    "contrast",
    "noise",
    "degraded",
    "teacher",
    "proxy",
)
"""Of classifiers alone."""

AUGMENTED = Recipe(
    architecture="simple-cnn",
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
"""AdamW on one cycle, with shifts, flips and smoothed labels. The numbers are ours, chosen on
held-out images."""

SPEEDNET = Recipe(
    architecture="speednet",
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
"""After airbench94 with Muon (Jordan 2024), with the numbers of a later speedrun (Hiverge 2025).
Passes are of 512 images, because more do not fit a processor's cache. Ten epochs, seven of them
cropped, cost as much as eight with whole images."""

NORMALIZED = Recipe(
    architecture="resnet20",
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
"""For the published networks with batch normalisation: speednet's optimizer, at rates of our own,
chosen on held-out images. A crop of 24 pixels costs 56% of a whole image."""

FAST_ROBUST = SPEEDNET.replace(
    architecture="fast",
    start="runs/fast-seed0",
    epochs=16,
    learning_rate=0.1,
    bias_learning_rate=0.03,
    head_learning_rate=0.3,
    translate=4,
    cropped=0.5,
    noise=6,
    degraded=0.5,
)
"""Half of the images degraded, at lower rates, from where `fast` ended. As for every recipe with a
`start`, the numbers are ours, chosen on held-out images."""

FAST_REFINED = FAST_ROBUST.replace(
    start="runs/fast-robust-seed0",
    start_part=0.5,
    epochs=20,
    learning_rate=0.06,
    bias_learning_rate=0.02,
    head_learning_rate=0.2,
    cropped=0.4,
    noise=0,
    degraded=0.3,
)
"""Fewer images degraded, at lower rates again, and the mean with where `fast-robust` ended."""

SPEEDNET_95_REFINED = FAST_REFINED.replace(
    architecture="speednet-95", start="runs/speednet-95-robust-seed0", epochs=8, cropped=0.5
)

SIMPLE_CNN_ROBUST = NORMALIZED.replace(
    architecture="simple-cnn",
    epochs=110,
    crop=0,
    cropped=0,
    label_smoothing=0.1,
    degraded=0.5,
)
"""For the exercise's CNN: on whole images, half of them degraded, for as long as it gains."""

TAUGHT = NORMALIZED.replace(
    learning_rate=0.03,
    crop=28,
    cropped=0.5,
    degraded=0.2,
    holdout=0.05,
)
"""From where a network ended, by the answers of a better one, a few images degraded."""

YOLO = Recipe(
    architecture="yolo",
    epochs=40,
    batch_size=8,
    optimizer="muon-adamw",
    learning_rate=0.04,
    head_learning_rate=2e-3,
    schedule="cosine",
    flip="random",
    height=288,
    width=384,
    turn=True,
    smallest=0.7,
    largest=1.4,
    mosaic=0.1,
    colour=0.25,
    averaged=0.99,
)
"""For a few hundred pictures without an upper side, as a microscope has them. The numbers are ours,
chosen on the held-out pictures of BCCD."""

UNET = Recipe(
    architecture="unet",
    epochs=40,
    batch_size=8,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=0.05,
    schedule="one-cycle",
    flip="random",
    height=256,
    width=256,
    turn=True,
    smallest=0.7,
    largest=1.5,
    colour=0.2,
    averaged=0.99,
    holdout=0.2,
)
"""The same for masks; the numbers were chosen on a part of the nuclei that is held out."""

RECIPES: dict[str, Recipe] = {
    "simple-cnn": Recipe(architecture="simple-cnn"),
    "fc": Recipe(architecture="fc"),
    "simple-cnn-augmented": AUGMENTED,
    "simple-cnn-robust": SIMPLE_CNN_ROBUST,
    "simple-cnn-taught": SIMPLE_CNN_ROBUST.replace(
        start="runs/simple-cnn-robust-seed0",
        teacher="runs/fast-refined-seed0",
        epochs=45,
        learning_rate=0.03,
        label_smoothing=0.0,
        degraded=0.3,
        holdout=0.05,
    ),
    "fc-augmented": AUGMENTED.replace(architecture="fc", label_smoothing=0.0, dropout=0.0),
    "alexnet": AUGMENTED.replace(
        architecture="alexnet",
        epochs=15,
        batch_size=250,
        learning_rate=5e-4,
        label_smoothing=0.1,
        dropout=0.5,
    ),
    "vgg16": NORMALIZED.replace(architecture="vgg16", epochs=8, crop=0, cropped=0),
    "resnet20": NORMALIZED,
    "resnet20-taught": TAUGHT.replace(
        start="runs/resnet20-seed0", teacher="runs/fast-refined-seed0", epochs=60
    ),
    "plain20": NORMALIZED.replace(architecture="plain20"),
    "resnet18": NORMALIZED.replace(architecture="resnet18", epochs=12),
    "resnet18-taught": TAUGHT.replace(
        architecture="resnet18",
        start="runs/resnet18-seed0",
        teacher="runs/speednet-95-degraded-seed0",
        epochs=6,
    ),
    "efficientnet-b0": AUGMENTED.replace(
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
    "fast": SPEEDNET.replace(architecture="fast", epochs=40, translate=4, noise=12),
    "fast-robust": FAST_ROBUST,
    "fast-refined": FAST_REFINED,
    "speednet-95": SPEEDNET.replace(
        architecture="speednet-95",
        epochs=24,
        translate=4,
        noise=8,
    ),
    "speednet-95-robust": FAST_ROBUST.replace(
        architecture="speednet-95", start="runs/speednet-95-seed0", epochs=6, noise=4
    ),
    "speednet-95-refined": SPEEDNET_95_REFINED,
    "speednet-95-degraded": SPEEDNET_95_REFINED.replace(
        start="runs/speednet-95-refined-seed0", degraded=0.6
    ),
    "speednet-96": SPEEDNET.replace(
        architecture="speednet-96",
        epochs=56,
        cutout=12,
        translate=4,
        proxy="speednet-proxy",
        selected=0.5,
        noise=6,
        holdout=0.02,
    ),
    "yolo": YOLO,
    "yolo-v1": YOLO.replace(
        architecture="yolo-v1",
        optimizer="adamw",
        learning_rate=1e-3,
        head_learning_rate=0.0,
        weight_decay=0.05,
        dropout=0.1,
    ),
    "unet": UNET,
    "yolo-backbone": NORMALIZED.replace(architecture="yolo-backbone", epochs=15),
    "unet-backbone": NORMALIZED.replace(architecture="unet-backbone", epochs=10),
    "yolo-scenes": YOLO.replace(
        start="runs/yolo-backbone-seed0",
        epochs=8,
        batch_size=16,
        height=128,
        width=128,
        turn=False,
        smallest=0.8,
        largest=1.2,
        mosaic=0.0,
    ),
    "unet-scenes": UNET.replace(
        start="runs/unet-backbone-seed0",
        epochs=2,
        learning_rate=3e-3,
        height=128,
        width=128,
        turn=False,
        smallest=0.8,
        largest=1.2,
        holdout=0.1,
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        RecipeError: no recipe has this name; the message lists the names.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}") from None
