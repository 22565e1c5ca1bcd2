"""The records that detectors and segmenters share: classes with numbers, and a background."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.artifact.manifest import ClassName, Frozen, Manifest

BACKGROUND = "background"
"""The name of what is no object, in a confusion matrix."""

Part = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ObjectManifest(Manifest):
    """Of a model that finds objects in pictures.

    `category_ids` are the numbers of the classes in the training data's COCO file.
    """

    category_ids: tuple[Count, ...]

    @model_validator(mode="after")
    def _every_class_has_an_id(self) -> Self:
        given = len(self.category_ids)
        if len(set(self.category_ids)) != given or given != len(self.classes):
            raise ValueError(
                f"category_ids are {self.category_ids}; there must be a different one for each of "
                f"{len(self.classes)} classes"
            )
        return self


class ClassRecord(Frozen):
    """The figures of one class on the test split, and how many objects of it there are."""

    label: ClassName
    objects: Count


class ObjectEvaluation(Frozen):
    """`evaluation.json` of a model that finds objects.

    The rows of the confusion matrix are true classes, the columns predicted ones; the last of each
    is background.
    """

    classes: tuple[ClassName, ...]
    images: Annotated[int, Field(ge=1)]
    objects: Count
    per_class: tuple[ClassRecord, ...]
    confusion_matrix: tuple[tuple[Count, ...], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows and columns of the confusion matrix."""
        return (*self.classes, BACKGROUND)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        rows = len(self.classes) + 1
        if [len(row) for row in self.confusion_matrix] != [rows] * rows:
            raise ValueError(
                f"the confusion matrix is not {rows}x{rows}: {rows - 1} classes and background"
            )
        if tuple(figures.label for figures in self.per_class) != self.classes:
            raise ValueError("per_class does not have the classes in their order")
        return self
