"""The answers; OpenAPI is generated from these."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.artifact.detection import ClassPrecision, DetectorManifest
from app.artifact.manifest import (
    ClassFigures,
    ClassifierManifest,
    Confusion,
    Manifest,
    Precision,
    Task,
)
from app.artifact.segmentation import ClassOverlap, SegmenterManifest
from app.explore.confusion_matrix import Normalization
from app.explore.saliency import PERTURBATIONS, SaliencyMethod


class Prediction(BaseModel):
    """One image's most probable class, and the probabilities of the classes."""

    label: str
    class_id: int
    confidence: float
    probabilities: dict[str, float]
    prediction_set: list[str] | None = Field(
        None,
        description="With `coverage`: classes that include the true one with this probability.",
    )
    ood_score: float | None = Field(
        None, description="How much the image differs from the model's training images."
    )
    out_of_distribution: bool | None = Field(
        None,
        description="Whether the score is higher than that of 95% of the images of known classes.",
    )
    filename: str | None = None
    warning: str | None = Field(
        None, description="The fault of a file that was decoded all the same."
    )


class Predictions(BaseModel):
    """The answer to one request; the predictions are in the order of the images."""

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


class PictureSize(BaseModel):
    """Width and height in pixels of a picture as it is looked at, upright."""

    width: int
    height: int


class Detection(BaseModel):
    """An object in a picture, in COCO's terms.

    `bbox` is x and y of the upper left corner, width and height, in pixels of the upright picture.
    """

    bbox: tuple[float, float, float, float]
    category: str
    category_id: int
    score: float


class PictureDetections(BaseModel):
    """The objects in one picture, the best first."""

    image: PictureSize
    detections: list[Detection]
    filename: str | None = None
    warning: str | None = Field(
        None, description="The fault of a file that was decoded all the same."
    )


class Detections(BaseModel):
    """The answer to one request.

    `image` and `detections` are of the only picture; of several, `pictures` has one entry each, in
    their order.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "yolo-bccd",
                "version": "1",
                "image": {"width": 640, "height": 480},
                "detections": [
                    {
                        "bbox": [254.1, 117.6, 98.2, 101.9],
                        "category": "RBC",
                        "category_id": 1,
                        "score": 0.93,
                    }
                ],
                "filename": "blood.jpg",
            }
        }
    )

    model: str
    version: str
    image: PictureSize | None = None
    detections: list[Detection] | None = None
    filename: str | None = None
    warning: str | None = None
    pictures: list[PictureDetections] | None = None


class RunLengths(BaseModel):
    """A mask as COCO's tools write it: height and width of the picture, and compressed counts."""

    size: tuple[int, int]
    counts: str


class Region(BaseModel):
    """All pixels of one class in a picture; `area` is their number."""

    category: str
    category_id: int
    area: int
    segmentation: RunLengths


class Instance(BaseModel):
    """An object in a picture, in COCO's terms.

    `bbox` is x and y of the upper left corner, width and height, in pixels of the upright picture.
    """

    category: str
    category_id: int
    score: float
    bbox: tuple[int, int, int, int]
    area: int
    segmentation: RunLengths


class PictureSegments(BaseModel):
    """The classes in one picture, in the model's order, and the objects, the best first."""

    image: PictureSize
    classes: list[Region]
    instances: list[Instance] | None = Field(
        None, description="By a model that tells objects apart."
    )
    filename: str | None = None
    warning: str | None = Field(
        None, description="The fault of a file that was decoded all the same."
    )


class Segments(BaseModel):
    """The answer to one request.

    `image`, `classes` and `instances` are of the only picture; of several, `pictures` has one entry
    each, in their order.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "unet-nuclei",
                "version": "1",
                "image": {"width": 4, "height": 3},
                "classes": [
                    {
                        "category": "nucleus",
                        "category_id": 1,
                        "area": 4,
                        "segmentation": {"size": [3, 4], "counts": "42102"},
                    }
                ],
                "instances": [
                    {
                        "category": "nucleus",
                        "category_id": 1,
                        "score": 0.97,
                        "bbox": [1, 1, 2, 2],
                        "area": 4,
                        "segmentation": {"size": [3, 4], "counts": "42102"},
                    }
                ],
                "filename": "nuclei.png",
            }
        }
    )

    model: str
    version: str
    image: PictureSize | None = None
    classes: list[Region] | None = None
    instances: list[Instance] | None = None
    filename: str | None = None
    warning: str | None = None
    pictures: list[PictureSegments] | None = None


class ModelVersion(BaseModel):
    """Summary of a served model."""

    name: str
    version: str
    task: Task
    default: bool = Field(description="Whether requests that name no model of the task get it.")
    architecture: str
    classes: tuple[str, ...]
    parameters: int
    macs: int
    test_accuracy: float | None = Field(None, description="Of a classifier.")
    test_map: float | None = Field(
        None, description="Of a detector: the mean average precision at IoU 0.5 to 0.95."
    )
    test_map50: float | None = Field(None, description="The same at IoU 0.5.")
    test_iou: float | None = Field(
        None, description="Of a segmenter: the mean IoU of its classes, without background."
    )
    test_instance_f1: float | None = Field(
        None, description="Of a segmenter that tells objects apart: F1 at IoU 0.5."
    )
    precisions: tuple[Precision, ...]
    explanations: tuple[SaliencyMethod, ...] = Field(
        (), description="The methods of `/explain` that work for this model."
    )

    @classmethod
    def of(cls, manifest: Manifest, *, default: bool) -> Self:
        """Summarise a manifest."""
        figures: dict[str, Any] = {}
        match manifest:
            case ClassifierManifest():
                cam = ("cam",) if manifest.averages_features else ()
                figures["test_accuracy"] = manifest.test.accuracy
                figures["explanations"] = (*PERTURBATIONS, *cam)
            case DetectorManifest():
                figures["test_map"] = manifest.test.map
                figures["test_map50"] = manifest.test.map50
            case SegmenterManifest():
                figures["test_iou"] = manifest.test.iou
                figures["test_instance_f1"] = manifest.test.instance_f1
        return cls(
            name=manifest.name,
            version=manifest.version,
            task=manifest.task,
            default=default,
            architecture=manifest.architecture,
            classes=manifest.classes,
            parameters=manifest.parameters,
            macs=manifest.macs,
            precisions=manifest.precisions,
            **figures,
        )


class ModelVersions(BaseModel):
    """Served models by name and ascending version."""

    models: list[ModelVersion]


class Health(BaseModel):
    """The answer to a probe; `models` are the served ones, as `name/version`."""

    status: Literal["live", "ready"]
    models: list[str] | None = None


class ConfusionMatrix(BaseModel):
    """A model's predictions on the test split against the true classes.

    In `counts`, rows are true classes and columns are predicted ones, in the order of `labels`.
    `normalized` is present with `normalize`.
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


class DetectionConfusionMatrix(BaseModel):
    """A detector's boxes on the test split against the objects.

    In `counts`, rows are true classes and columns are predicted ones, in the order of `labels`; the
    last of each is background: boxes where no object is, and objects that no box finds. Boxes of at
    least `score_threshold` count.
    """

    model: str
    version: str
    labels: tuple[str, ...]
    images: int
    objects: int
    score_threshold: float
    counts: tuple[tuple[int, ...], ...]
    normalize: Normalization | None = None
    normalized: list[list[float]] | None = None


class SegmentationConfusionMatrix(BaseModel):
    """The pixels of the test split: a segmenter's classes against the true ones.

    In `counts`, rows are true classes and columns are predicted ones, in the order of `labels`; the
    last of each is background.
    """

    model: str
    version: str
    labels: tuple[str, ...]
    images: int
    objects: int
    counts: tuple[tuple[int, ...], ...]
    normalize: Normalization | None = None
    normalized: list[list[float]] | None = None


class SegmenterEvaluation(BaseModel):
    """A segmenter's figures on the test split, and those of each class.

    `instance_f1` is there if the model tells objects apart.
    """

    model: str
    version: str
    images: int
    objects: int
    iou: float
    boundary_f1: float
    instance_f1: float | None = None
    ece_raw: float
    ece_calibrated: float
    per_class: tuple[ClassOverlap, ...]


class DetectorEvaluation(BaseModel):
    """A detector's figures on the test split, and the average precision of each class."""

    model: str
    version: str
    images: int
    objects: int
    map: float
    map50: float
    ece_raw: float
    ece_calibrated: float
    score_threshold: float
    per_class: tuple[ClassPrecision, ...]


class CellImage(BaseModel):
    """A test image: its index in the test split, its prediction's probability, and a data URL."""

    index: int
    confidence: float
    png: str


class ConfusionCell(BaseModel):
    """The test images of one cell of the confusion matrix, most confident predictions first.

    `count` is the number of all such images; an artifact keeps at most 24.
    """

    model: str
    version: str
    true: str
    predicted: str
    count: int
    images: list[CellImage]


class Explanation(BaseModel):
    """The evidence of each pixel for a class (above 0) or against it, rows from the top.

    With `regions` and `occlusion`, values are differences of the class's log-probability, in nats;
    with `cam`, contributions to its logit.
    """

    model: str
    version: str
    method: SaliencyMethod
    label: str
    class_id: int
    probability: float
    heat: list[list[float]]


class Activations(BaseModel):
    """A layer's output for an image: `[channels,height,width]`, `[height,width]` or `[units]`.

    `layers` are the names that the parameter `layer` takes; `channel` is null for all channels.
    """

    model: str
    version: str
    layer: str
    layers: list[str]
    channel: int | None
    shape: list[int]
    values: list[Any]


class StrongResponse(BaseModel):
    """A part of a test image and a filter's response to it.

    `image` is the index in the test split. The part's upper left corner is at `row` and `column`,
    which may lie outside the image.
    """

    image: int
    row: int
    column: int
    value: float


class Filters(BaseModel):
    """A layer's weights, float32 `[filters,channels,height,width]`, or those of one filter.

    One filter has the shape `[channels,height,width]` and an `index`; where they exist, also the
    `bias` that is added to its output, and the parts of test images that it responds to most.
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
