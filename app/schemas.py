"""What the service answers and which query parameters it takes: OpenAPI is written from these."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.contract import Artifact, ClassFigures, Confusion, Manifest, Precision, Probabilities
from app.errors import InvalidParameter

VERSION_HELP = "Its version; unless given, the default's for the default model, else the highest."


class Prediction(BaseModel):
    """One image's class, and the classes that were likely."""

    label: str
    class_id: int
    confidence: float
    probabilities: dict[str, float]
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
        probabilities: Probabilities,
        filenames: Sequence[str | None],
        top_k: int,
    ) -> str:
        """Write float32 probabilities `[N,classes]` as this schema's JSON, the highest first.

        Without a model object on the way: filling one takes longer than all of the writing.
        """
        names = _quoted(artifact.manifest.classes)
        rows = zip(probabilities.tolist(), filenames, strict=True)
        predictions = ",".join([_render(names, row, top_k, filename) for row, filename in rows])
        return (
            f'{{"model":"{artifact.manifest.name}","version":"{artifact.manifest.version}",'
            f'"predictions":[{predictions}]}}'
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


def _render(names: Sequence[str], row: Sequence[float], top_k: int, filename: str | None) -> str:
    # A stable sort leaves equal probabilities in the order of the classes, as argmax does.
    best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
    # Six digits are what a float32 is sure of.
    pairs = ",".join([f"{names[index]}:{row[index]:.6g}" for index in best])
    named = f',"filename":{json.dumps(filename)}' if filename is not None else ""
    return (
        f'{{"label":{names[best[0]]},"class_id":{best[0]},"confidence":{row[best[0]]:.6g},'
        f'"probabilities":{{{pairs}}}{named}}}'
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
    normalize: Literal["true", "pred", "all"] | None = None
    normalized: list[list[float]] | None = None
    per_class: tuple[ClassFigures, ...]
    top_confusions: tuple[Confusion, ...]


class Filters(BaseModel):
    """A layer's weights, float32 `[filters,channels,height,width]`, or those of one filter.

    One filter has the shape `[channels,height,width]` and its `index`.
    """

    model: str
    version: str
    layer: str
    layers: list[str]
    index: int | None = None
    shape: list[int]
    weights: list[Any]


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:convscope:problem:not-an-image"])
    title: str
    status: int
    detail: str
    instance: str
    request_id: str


class Query(BaseModel):
    """Query parameters; one that is not known is an error, because a typo would go unnoticed."""

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, values: Any) -> Any:
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            raise ValueError(
                f"unknown query parameter {unknown[0][:64]!r}; there are: "
                f"{', '.join(cls.model_fields) or 'none'}"
            )
        return values


class ModelQuery(Query):
    """Which model, by name and version; the default model unless given."""

    model: str | None = Field(None, max_length=64, description="The model's name.")
    version: str | None = Field(None, max_length=16, description=VERSION_HELP)


class PredictQuery(ModelQuery):
    """Parameters of a prediction."""

    top_k: int | None = Field(
        None,
        ge=1,
        description="How many probabilities to give, highest first: 1 to the number of classes; "
        "all unless given.",
    )


class FilterQuery(ModelQuery):
    """Parameters of one filter's picture."""

    layer: str | None = Field(
        None, max_length=256, description="The layer's name; the first with filters unless given."
    )
    scale: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Side in pixels of a weight's square; chosen for a handy picture unless given.",
    )
    format: Literal["png", "json"] | None = Field(None, description="Wins over Accept.")


class FiltersQuery(FilterQuery):
    """Parameters of a layer's picture."""

    columns: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Filters in a row; about as many as there are rows unless given.",
    )


class ConfusionMatrixQuery(ModelQuery):
    """Parameters of a confusion matrix."""

    normalize: Literal["true", "pred", "all"] | None = Field(
        None, description="Divide by the sum of the row, of the column, or of everything."
    )
    format: Literal["json", "png", "csv"] | None = Field(None, description="Wins over Accept.")
