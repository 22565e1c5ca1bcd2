"""What the service answers: OpenAPI is written from these."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.artifact.directory import Artifact
from app.artifact.manifest import ClassFigures, Confidence, Confusion, Manifest, Precision
from app.artifact.tensors import Outputs
from app.errors import InvalidParameter
from app.explore.confusion_matrix import Normalization
from app.explore.saliency import SaliencyMethod


class Prediction(BaseModel):
    """One image's class, and the classes that were likely."""

    label: str
    class_id: int
    confidence: float
    probabilities: dict[str, float]
    prediction_set: list[str] | None = Field(
        None, description="With `coverage`: the classes among which the true one is so often."
    )
    ood_score: float | None = Field(
        None, description="How unlike the model's training images this one is."
    )
    out_of_distribution: bool | None = Field(
        None, description="Whether that is more than of 95% of the images it should know."
    )
    filename: str | None = None


class Predictions(BaseModel):
    """The answer to one request; predictions stand in the images' order."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "simple-cnn",
                "version": "2",
                "predictions": [
                    {
                        "label": "cat",
                        "class_id": 3,
                        "confidence": 0.91,
                        "probabilities": {"cat": 0.91, "dog": 0.06, "frog": 0.01},
                        "ood_score": 0.31,
                        "out_of_distribution": False,
                        "filename": "cat.png",
                    }
                ],
            }
        }
    )

    model: str
    version: str
    predictions: list[Prediction]

    @classmethod
    def render(
        cls,
        artifact: Artifact,
        outputs: Outputs,
        filenames: Sequence[str | None],
        top_k: int,
        confidence: Confidence | None,
        sets: NDArray[np.bool_] | None = None,
    ) -> str:
        """Write what a model gave as this schema's JSON, the highest probability first.

        Without a model object on the way: filling one takes longer than all of the writing.

        Args:
            artifact: the model.
            outputs: of its graph, for N images.
            filenames: of the N images.
            top_k: how many probabilities to give.
            confidence: what the graph's scores mean, if that is known.
            sets: which classes are in each image's prediction set, `[N,classes]`, if that is
                asked for.
        """
        names = _quoted(artifact.manifest.classes)
        rows = outputs.probabilities.tolist()
        written = [_render(names, row, top_k) for row in rows]
        if sets is not None:
            members = [",".join(names[place] for place in np.flatnonzero(row)) for row in sets]
            written = [
                f'{text},"prediction_set":[{inside}]'
                for text, inside in zip(written, members, strict=True)
            ]
        if outputs.ood_scores is not None and confidence is not None:
            limit = confidence.out_of_distribution.threshold
            written = [
                f'{text},"ood_score":{score:.6g},'
                f'"out_of_distribution":{"true" if score > limit else "false"}'
                for text, score in zip(written, outputs.ood_scores.tolist(), strict=True)
            ]
        named = [
            text if filename is None else f'{text},"filename":{json.dumps(filename)}'
            for text, filename in zip(written, filenames, strict=True)
        ]
        return (
            f'{{"model":"{artifact.manifest.name}","version":"{artifact.manifest.version}",'
            f'"predictions":[{",".join([f"{{{text}}}" for text in named])}]}}'
        )


def top_k_of(wanted: int | None, artifact: Artifact) -> int:
    """Return how many probabilities to give.

    Raises:
        InvalidParameter: more are wanted than the model has classes.
    """
    classes = len(artifact.manifest.classes)
    if wanted is None:
        return classes
    if wanted > classes:
        given = str(wanted)[:16]
        raise InvalidParameter(f"top_k={given}: the limit is the model's {classes} classes")
    return wanted


@lru_cache(64)
def _quoted(names: tuple[str, ...]) -> list[str]:
    return [json.dumps(name) for name in names]


def _render(names: Sequence[str], row: Sequence[float], top_k: int) -> str:
    # A stable sort leaves equal probabilities in the order of the classes, as argmax does.
    best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
    # Six digits are what a float32 is sure of.
    pairs = ",".join([f"{names[index]}:{row[index]:.6g}" for index in best])
    return (
        f'"label":{names[best[0]]},"class_id":{best[0]},"confidence":{row[best[0]]:.6g},'
        f'"probabilities":{{{pairs}}}'
    )


class ModelVersion(BaseModel):
    """A served model in short."""

    name: str
    version: str
    default: bool
    architecture: str
    classes: tuple[str, ...]
    parameters: int
    macs: int
    test_accuracy: float
    precisions: tuple[Precision, ...]
    explanations: tuple[SaliencyMethod, ...] = Field(
        description="The methods of `/explain` that it can be asked with."
    )

    @classmethod
    def of(cls, manifest: Manifest, *, default: bool) -> Self:
        """Summarise a manifest."""
        return cls(
            name=manifest.name,
            version=manifest.version,
            default=default,
            architecture=manifest.architecture,
            classes=manifest.classes,
            parameters=manifest.parameters,
            macs=manifest.macs,
            test_accuracy=manifest.test.accuracy,
            precisions=manifest.precisions,
            explanations=("occlusion", "cam") if manifest.averages_features else ("occlusion",),
        )


class ModelVersions(BaseModel):
    """Served models by name and ascending version."""

    models: list[ModelVersion]


class Health(BaseModel):
    """What a probe sees; `models` are served as `name/version`."""

    status: Literal["live", "ready"]
    models: list[str] | None = None


class ConfusionMatrix(BaseModel):
    """How a model's predictions on the test split compare with the truth.

    `counts` has the true classes as rows and the predicted ones as columns, in the order of
    `labels`; `normalized` is there if `normalize` is.
    """

    model: str
    version: str
    labels: tuple[str, ...]
    images: int
    accuracy: float
    counts: tuple[tuple[int, ...], ...]
    normalize: Normalization | None = None
    normalized: list[list[float]] | None = None
    per_class: tuple[ClassFigures, ...]
    top_confusions: tuple[Confusion, ...]


class CellImage(BaseModel):
    """A test image by its index in the test split, its prediction's probability, and a data URL."""

    index: int
    confidence: float
    png: str


class ConfusionCell(BaseModel):
    """The test images behind a cell of the confusion matrix, the surest predictions first.

    `count` is how many there are in all; at most 24 are kept.
    """

    model: str
    version: str
    true: str
    predicted: str
    count: int
    images: list[CellImage]


class Explanation(BaseModel):
    """How much each pixel speaks for a class (above 0) or against it, rows from the top.

    `occlusion` counts the log-probability that is lost, in nats, when a square around the pixel
    is covered; `cam` what the pixel adds to the class's logit.
    """

    model: str
    version: str
    method: SaliencyMethod
    label: str
    class_id: int
    probability: float
    heat: list[list[float]]


class Activations(BaseModel):
    """What a layer gives for an image: `[channels,height,width]`, `[height,width]` or `[units]`.

    `layers` are those that can be asked for; `channel` is given if one was.
    """

    model: str
    version: str
    layer: str
    layers: list[str]
    channel: int | None
    shape: list[int]
    values: list[Any]


class StrongResponse(BaseModel):
    """A part of a test image, by the image's index in the test split, and a filter's answer to it.

    It starts at `row` and `column` of the image, which may lie outside it.
    """

    image: int
    row: int
    column: int
    value: float


class Filters(BaseModel):
    """A layer's weights, float32 `[filters,channels,height,width]`, or those of one filter.

    One filter has the shape `[channels,height,width]`, its `index`, the `bias` that is added to
    its output if there is one, and the test images' parts to which it responds most.
    """

    model: str
    version: str
    layer: str
    layers: list[str]
    index: int | None = None
    shape: list[int]
    weights: list[Any]
    bias: float | None = None
    responses: list[StrongResponse] | None = None
