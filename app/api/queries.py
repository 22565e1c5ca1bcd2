"""The query parameters of all routes; OpenAPI is generated from these."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from app.artifact.manifest import SetMethod, composed
from app.explore.confusion_matrix import Normalization
from app.explore.saliency import SaliencyMethod
from app.tasks.classification import DEFAULT_SETS
from app.tasks.detection import DEFAULT_DETECTIONS, MAX_DETECTIONS
from app.tasks.segmentation import DEFAULT_INSTANCES, MAX_INSTANCES

VERSION_HELP = "The model's version; the highest, or for the default model its own, unless given."


ClassName = Annotated[str, Field(max_length=256), AfterValidator(composed)]
"""A class that the client names. The limit comes first: the time to compose it grows fast."""


class Query(BaseModel):
    """Query parameters. An unknown one is an error: a typo would go unnoticed."""

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
    """The model, by name and version; the default model unless given."""

    model: str | None = Field(None, max_length=64, description="The model's name.")
    version: str | None = Field(None, max_length=16, description=VERSION_HELP)


class PredictQuery(ModelQuery):
    """Parameters of a prediction."""

    top_k: int | None = Field(
        None,
        ge=1,
        description="The number of probabilities to return, highest first, from 1 to the number "
        "of classes; all unless given.",
    )
    coverage: float | None = Field(
        None,
        ge=0.01,
        le=0.99,
        description="Also return a set of classes that includes the true one with this "
        "probability, rounded up to a whole percent.",
    )
    sets: SetMethod = Field(
        DEFAULT_SETS,
        description="The method of prediction sets: `aps` gives difficult images larger ones and "
        "loses least on pictures that are not clean, `lac` gives the smallest on average, "
        "`class-conditional` covers each class as often as asked, with a certainty of 90%. Needs "
        "`coverage`.",
    )

    @model_validator(mode="after")
    def _have_coverage_for_sets(self) -> Self:
        if self.coverage is None and self.sets != DEFAULT_SETS:
            raise ValueError(f"sets={self.sets} needs coverage, for example coverage=0.9")
        return self


class ExplainQuery(ModelQuery):
    """Parameters of an explanation."""

    class_: ClassName | None = Field(
        None, alias="class", description="The predicted class unless given."
    )
    method: SaliencyMethod = Field(
        "regions",
        description="`regions` and `occlusion` work for every model, `cam` for networks that end "
        "in global average pooling.",
    )
    format: Literal["json", "png", "overlay"] | None = Field(
        None,
        description="Overrides Accept; `overlay` is a PNG of the heat map over the sent image.",
    )


class ActivationsQuery(ModelQuery):
    """Parameters of a layer's output."""

    layer: str | None = Field(
        None, max_length=256, description="The layer's name, or `pixels`; the first unless given."
    )
    channel: int | None = Field(
        None, ge=0, description="A channel or unit, from 0; all unless given."
    )
    scale: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Pixels of the picture for each value; chosen to fit a screen unless given.",
    )
    columns: int | None = Field(
        None, ge=1, le=1024, description="Channels in a row of the picture."
    )
    format: Literal["png", "json"] | None = Field(None, description="Overrides Accept.")


class FilterQuery(ModelQuery):
    """Parameters of one filter's picture."""

    layer: str | None = Field(
        None, max_length=256, description="The layer's name; the first with filters unless given."
    )
    scale: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Pixels of the picture for each weight; chosen to fit a screen unless given.",
    )
    format: Literal["png", "json"] | None = Field(None, description="Overrides Accept.")

    show: Literal["weights", "responses"] | None = Field(
        None,
        description="`weights`, or `responses`: the nine parts of test images that a filter "
        "responds to most. Unless given, weights for the first layer and responses for others.",
    )


class FiltersQuery(FilterQuery):
    """Parameters of a layer's picture."""

    columns: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Filters in a row of the picture; a square arrangement unless given.",
    )


class ConfusionCellQuery(ModelQuery):
    """Parameters of a cell of a confusion matrix."""

    scale: int = Field(3, ge=1, le=16, description="Pixels of the PNG for each pixel of an image.")
    format: Literal["json", "png"] | None = Field(None, description="Overrides Accept.")


class ConfusionMatrixQuery(ModelQuery):
    """Parameters of a confusion matrix."""

    normalize: Normalization | None = Field(
        None,
        description="Divide by the sum of the row (`true`), the column (`pred`) or everything.",
    )
    format: Literal["json", "png", "csv"] | None = Field(None, description="Overrides Accept.")


class DetectQuery(ModelQuery):
    """Parameters of a detection."""

    score_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Leave out objects with a lower score; the model's own threshold unless given.",
    )
    iou_threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Of two objects of a class that overlap by more than this, leave out the worse "
        "one; at most the model's own threshold, which holds unless given.",
    )
    max_detections: int = Field(
        DEFAULT_DETECTIONS,
        ge=1,
        le=MAX_DETECTIONS,
        description="The most objects in one picture, the best first.",
    )
    format: Literal["json", "png"] | None = Field(
        None, description="Overrides Accept; `png` is the picture with boxes drawn."
    )


class SegmentQuery(ModelQuery):
    """Parameters of a segmentation."""

    score_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Leave out objects with a lower score. Only for models that tell objects "
        "apart, as `max_instances`.",
    )
    max_instances: int | None = Field(
        None,
        ge=1,
        le=MAX_INSTANCES,
        description="The most objects in one picture, the best first; "
        f"{DEFAULT_INSTANCES} unless given.",
    )
    format: Literal["json", "png", "overlay"] | None = Field(
        None,
        description="Overrides Accept; `png` has the number of each pixel's class, `overlay` is "
        "the picture with the masks over it.",
    )


class EvaluationQuery(ModelQuery):
    """Parameters of the figures of a detector or a segmenter."""

    format: Literal["json", "png"] | None = Field(None, description="Overrides Accept.")
