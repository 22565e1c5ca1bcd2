"""The parameters that routes take in their address; OpenAPI is written from these."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from app.artifact.manifest import SetMethod
from app.explore.confusion_matrix import Normalization
from app.explore.saliency import SaliencyMethod

VERSION_HELP = "Its version; unless given, the default's for the default model, else the highest."


class Query(BaseModel):
    """Query parameters; one that is not known is an error, because a typo would go unnoticed."""

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, values: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"unknown query parameter {unknown[0][:64]!r}; there are: "
                f"{', '.join(known) or 'none'}"
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
    coverage: float | None = Field(
        None,
        ge=0.01,
        le=0.99,
        description="Give the classes among which the true one is with this probability, rounded "
        "up to a whole percent.",
    )
    sets: SetMethod = Field(
        "lac", description="How they are chosen: `lac` keeps them few, `aps` fair to hard images."
    )


class ExplainQuery(ModelQuery):
    """Parameters of an explanation."""

    class_: str | None = Field(
        None, alias="class", max_length=256, description="The predicted class unless given."
    )
    method: SaliencyMethod = Field(
        "occlusion",
        description="`occlusion` works for every model, `cam` where the network ends in global "
        "average pooling.",
    )
    format: Literal["json", "png", "overlay"] | None = Field(
        None, description="Wins over Accept; `overlay` is a PNG of the image as it was sent."
    )


class ActivationsQuery(ModelQuery):
    """Parameters of what a layer gives."""

    layer: str | None = Field(
        None, max_length=256, description="The layer's name, or `pixels`; the first unless given."
    )
    channel: int | None = Field(None, ge=0, description="One channel or unit; all unless given.")
    scale: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Side in pixels of a value's square; chosen for a handy picture unless given.",
    )
    columns: int | None = Field(None, ge=1, le=1024, description="Channels in a row.")
    format: Literal["png", "json"] | None = Field(None, description="Wins over Accept.")


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

    show: Literal["weights", "responses"] | None = Field(
        None,
        description="`responses` are the nine parts of test images to which a filter responds "
        "most; unless given, these for all layers but the first.",
    )


class FiltersQuery(FilterQuery):
    """Parameters of a layer's picture."""

    columns: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Filters in a row; about as many as there are rows unless given.",
    )


class ConfusionCellQuery(ModelQuery):
    """Parameters of a cell of a confusion matrix."""

    scale: int = Field(3, ge=1, le=16, description="Side in pixels of an image's pixel in the PNG.")
    format: Literal["json", "png"] | None = Field(None, description="Wins over Accept.")


class ConfusionMatrixQuery(ModelQuery):
    """Parameters of a confusion matrix."""

    normalize: Normalization | None = Field(
        None, description="Divide by the sum of the row, of the column, or of everything."
    )
    format: Literal["json", "png", "csv"] | None = Field(None, description="Wins over Accept.")
