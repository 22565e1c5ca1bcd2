"""The part of the artifact contract that says what was measured: `evaluation.json`.

Who needs these records imports them from `contract`. Nothing here reads a file.
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _check_distinct(labels: tuple[str, ...]) -> tuple[str, ...]:
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{label!r} stands there {count} times; once is allowed")
    return labels


Views = Literal[1, 2, 6]
Weights = Literal["float32", "float16"]
Classes = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_check_distinct)]


class Frozen(BaseModel):
    """An immutable record that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TestFigures(Frozen):
    """Figures on the test split. Cross-entropy is in nats; ECE has 15 bins (Guo et al. 2017).

    `calibrated` is with the fitted temperature, as the served probabilities are; `raw` is without.
    """

    accuracy: float
    cross_entropy_raw: float
    cross_entropy_calibrated: float
    ece_raw: float
    ece_calibrated: float


class ClassFigures(Frozen):
    """Precision, recall and F1 of one class on the test split, and how many images it has."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(Frozen):
    """How many test images of the class `true` were predicted as `predicted`."""

    true: str
    predicted: str
    count: int


class Mistake(Frozen):
    """A test image, by its index in the test split, that was predicted wrongly."""

    index: int
    true: str
    predicted: str
    confidence: float


class Evaluation(Frozen):
    """`evaluation.json`: the figures measured on the test split.

    `confusion_matrix` is `[classes][classes]` counts, rows true, columns predicted. `views` is how
    many views of each image were averaged, `weights` what the kernels and matrices are stored as.
    """

    classes: Classes
    images: int
    views: Annotated[Views, Field(exclude_if=lambda views: views == 1)] = 1
    weights: Annotated[Weights, Field(exclude_if=lambda weights: weights == "float32")] = "float32"
    temperature: float
    test: TestFigures
    confusion_matrix: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]
    per_class: tuple[ClassFigures, ...]
    top_confusions: tuple[Confusion, ...]
    confident_mistakes: tuple[Mistake, ...]

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        classes = len(self.classes)
        if [len(row) for row in self.confusion_matrix] != [classes] * classes:
            raise ValueError(f"the confusion matrix is not {classes}x{classes}, as classes are")
        if tuple(figures.label for figures in self.per_class) != self.classes:
            raise ValueError("per_class does not have the classes in their order")
        return self
