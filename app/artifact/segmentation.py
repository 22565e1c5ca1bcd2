"""The records of a segmenter in its manifest and its evaluation. Nothing here reads a file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.artifact.manifest import Frozen, Int8Graph
from app.artifact.objects import ClassRecord, ObjectEvaluation, ObjectManifest, Part
from app.artifact.tensors import DEPTH, PROBABILITIES

MAX_CLASSES = 255
"""With background, as many as a PNG's palette has entries."""


class SegmentationFigures(Frozen):
    """Figures on the test split.

    `iou` is the mean over the classes, without background, of the overlap (IoU) over all pixels.
    `boundary_f1` (Csurka et al. 2013) compares borders with a tolerance of 2 pixels; it is a mean
    over pictures. `instance_f1` counts an object as found at an overlap of 0.5. The ECE is that of
    pixels: `raw` before the probabilities were calibrated, `calibrated` as they are served.
    """

    iou: Part
    boundary_f1: Part
    instance_f1: Annotated[Part | None, Field(exclude_if=lambda part: part is None)] = None
    ece_raw: Part
    ece_calibrated: Part


class SegmenterInt8(Int8Graph):
    """The int8 graph of a segmenter, with its measured figures, as in `SegmentationFigures`."""

    heldout_iou_float32: Part
    heldout_iou: Part
    test_iou: Part
    test_instance_f1: Annotated[Part | None, Field(exclude_if=lambda part: part is None)] = None


class Instances(Frozen):
    """The thresholds by which objects are told apart, chosen on held-out images.

    A pixel belongs to an object if it is no background with `least_probability`. Each connected
    part of these pixels that is deeper than `seed_depth` is the inside of an object of its own.
    Objects of fewer pixels of the input than `least_area` are left out.
    """

    least_probability: Part
    seed_depth: Part
    least_area: Annotated[int, Field(ge=1)]


class SegmenterManifest(ObjectManifest):
    """Of a segmenter: an image in, a probability for each class of each pixel out.

    `probabilities` are of background and then the classes in their order, `[N,C+1,H,W]`, with the
    input's height and width. If objects of one class are told apart, `depth`, `[N,H,W]`, says how
    deep a pixel lies within its object, as a part of the object's deepest pixel, and `instances`
    has the thresholds.
    """

    task: Literal["segmentation"]
    instances: Annotated[
        Instances | None, Field(exclude_if=lambda instances: instances is None)
    ] = None
    test: SegmentationFigures
    int8: Annotated[SegmenterInt8 | None, Field(exclude_if=lambda record: record is None)] = None

    @model_validator(mode="after")
    def _gives_maps(self) -> Self:
        found = {output.name: output for output in self.outputs}
        expected: dict[str, tuple[str | int, ...]] = {
            PROBABILITIES: ("N", len(self.classes) + 1, *self.image_size)
        }
        if DEPTH in found:
            expected[DEPTH] = ("N", *self.image_size)
        for name, shape in expected.items():
            output = found.get(name)
            if output is None or (output.dtype, output.shape) != ("float32", shape):
                given = "missing" if output is None else f"{output.dtype} {output.shape}"
                raise ValueError(f"the output {name} is {given}; it must be float32 {shape}")
        if (DEPTH in found) != (self.instances is not None):
            given = "no output" if self.instances is not None else "an output"
            raise ValueError(f"there is {given} {DEPTH}; it and instances go together")
        return self

    @model_validator(mode="after")
    def _classes_fit_a_palette(self) -> Self:
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(f"there are {len(self.classes)} classes; the limit is {MAX_CLASSES}")
        return self

    @property
    def predicted(self) -> list[str]:
        """Probabilities, and depth if objects are told apart."""
        return [PROBABILITIES] if self.instances is None else [PROBABILITIES, DEPTH]


class ClassOverlap(ClassRecord):
    """The figures of one class on the test split, as in `SegmentationFigures`."""

    iou: Part
    boundary_f1: Part
    instance_f1: Annotated[Part | None, Field(exclude_if=lambda part: part is None)] = None


class SegmentationEvaluation(ObjectEvaluation):
    """`evaluation.json` of a segmenter: the figures measured on the test split.

    `confusion_matrix` counts pixels.
    """

    task: Literal["segmentation"]
    test: SegmentationFigures
    per_class: tuple[ClassOverlap, ...]
