"""Segmentation: from a graph's maps to the classes and objects of a picture, in its own pixels.

Each pixel has the class that is most probable there, or background. Objects of one class are told
apart where the graph says how deep each pixel lies in its object: `number_objects` floods them from
their deepest parts (Beucher & Lantuéjoul 1979). Training chooses the thresholds with the same
function.

Both are made in the input's pixels, and then brought to those of the picture that was sent. There,
the probabilities are interpolated between the input's pixels before they are compared, so that
borders are smooth in a picture that is larger than the input. A pixel is background or has one of
the classes that are the most probable somewhere in the input; others are not interpolated. The
border between two objects that touch follows the input's pixels. Pixels outside of a crop are
background.

mahotas is an extra, `convscope[segmentation]`; only models that tell objects apart need it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.segmentation import Instances, SegmenterManifest
from app.artifact.tensors import DEPTH, PROBABILITIES, Outputs, Probabilities
from app.errors import InvalidParameter, SettingsError, TooManyPixels
from app.images import rle
from app.images.limits import megapixels
from app.images.placement import Placement

DEFAULT_INSTANCES, MAX_INSTANCES = 1000, 10_000
"""The most objects in an answer for one picture."""

STRIP_PIXELS = 1 << 20
"""Pixels of the picture that are interpolated at a time."""

LONGEST_SIDE = 65_535
"""Pixels of a picture's longer side, as in JPEG. Work on a line of millions holds up the others."""

Objects = NDArray[np.int32]
"""The number of each pixel's object, from 1; 0 where there is none, int32 `[H,W]`."""


def check_library(artifacts: Iterable[Artifact]) -> None:
    """Load mahotas if a model needs it.

    Raises:
        SettingsError: a model tells objects apart, and mahotas is not installed.
    """
    for artifact in artifacts:
        manifest = artifact.manifest
        if isinstance(manifest, SegmenterManifest) and manifest.instances is not None:
            try:
                import mahotas  # noqa: F401 - now, and not at the first request
            except ModuleNotFoundError as exc:
                raise SettingsError(
                    f"{artifact.ref} tells objects apart with mahotas, and {exc.name} is not "
                    "installed: pip install 'convscope[segmentation]'; CONVSCOPE_MODELS can leave "
                    "the model out"
                ) from exc
            return


def number_objects(
    probabilities: Probabilities, depth: NDArray[np.float32], rule: Instances
) -> Objects:
    """Tell the objects in an image apart.

    Pixels of any object are those that are no background with `least_probability`. The connected
    parts of them that are deeper than `seed_depth` are the insides of different objects; a
    watershed gives each other pixel to the object that it is deepest connected with. A part without
    such an inside is an object of its own. Objects of fewer pixels than `least_area` are left out.
    Pixels are connected by their sides.

    Args:
        probabilities: of background and the classes, float32 `[C+1,H,W]`.
        depth: 0 to 1, float32 `[H,W]`.
        rule: the thresholds.
    """
    import mahotas

    inside = _foreground(probabilities) >= rule.least_probability
    parts, part_count = mahotas.label(inside)
    seeds, seed_count = mahotas.label(inside & (depth > rule.seed_depth))
    part_of = np.zeros(seed_count + 1, np.intp)
    part_of[seeds] = parts
    seeds_in = np.bincount(part_of[1:], minlength=part_count + 1)
    without = np.flatnonzero(seeds_in == 0)[1:]  # the first is the background
    object_of = np.zeros(part_count + 1, np.int32)
    object_of[part_of[1:]] = np.arange(1, seed_count + 1)
    object_of[without] = seed_count + 1 + np.arange(len(without))
    flooded: Objects = object_of[parts]
    # A watershed of the whole image would give the same, and take five times as long.
    boxes = mahotas.labeled.bbox(parts)
    for several in np.flatnonzero(seeds_in > 1):
        upper, lower, left, right = boxes[several]
        box = np.s_[upper:lower, left:right]
        part = parts[box] == several
        surface = np.where(part, -depth[box], np.inf)
        basins = mahotas.cwatershed(surface, np.where(part, seeds[box], 0))
        np.copyto(flooded[box], basins, where=part, casting="same_kind")
    areas = np.bincount(flooded.ravel())
    areas[0] = 0
    large = np.flatnonzero(areas >= rule.least_area)
    numbers = np.zeros(len(areas), np.int32)
    numbers[large] = np.arange(1, len(large) + 1)
    return numbers[flooded]


def classify_objects(
    probabilities: Probabilities, objects: Objects
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each object's class and its score.

    The class is the one with the largest sum of probabilities over the object's pixels, and the
    score the mean of its probabilities there.

    Args:
        probabilities: of background and the classes, float32 `[C+1,H,W]`.
        objects: n objects, numbered from 1.

    Returns:
        Indices of classes, without background, int64 `[n]`; float64 `[n]`.
    """
    flat = objects.ravel()
    count = int(flat.max(initial=0)) + 1
    sums = np.stack(
        [np.bincount(flat, values.ravel(), count)[1:] for values in probabilities[1:]], axis=1
    )
    areas = np.bincount(flat, minlength=count)[1:]
    labels: NDArray[np.int64] = sums.argmax(axis=1)
    return labels, sums[np.arange(len(sums)), labels] / areas


@dataclass(frozen=True, slots=True)
class Segmented:
    """A picture's masks, in its own pixels.

    Attributes:
        classes: 0 for background, otherwise one more than the index of the class, uint8 `[h,w]`.
        objects: 0 where there is none, otherwise the object's number, from 1 for the best one,
            uint16 `[h,w]`; None if the model does not tell objects apart.
        labels: indices of the objects' classes. An object may have no pixel in the picture.
        scores: of the objects, rounded to a millionth.
    """

    classes: NDArray[np.uint8]
    objects: NDArray[np.uint16] | None
    labels: Sequence[int]
    scores: Sequence[float]

    @property
    def regions(self) -> tuple[NDArray[np.uint16], Sequence[int]]:
        """The objects, or else the classes, by number as in `objects`, and the class of each."""
        if self.objects is not None:
            return self.objects, self.labels
        return self.classes.astype(np.uint16), range(int(self.classes.max(initial=0)))


@dataclass(frozen=True, slots=True)
class Described:
    """A picture's part of the answer, and the classes to count in it: of objects, or of regions."""

    content: dict[str, Any]
    labels: Sequence[str]


class Interpreter:
    """Writes the answer to one request from the outputs of one model.

    Made before an image is read, so that a wrong parameter is refused at once. `segment` and
    `describe` take time that grows with the picture, and are for a thread.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        score_threshold: float | None = None,
        max_instances: int | None = None,
    ) -> None:
        """Check the parameters.

        Args:
            artifact: the model, a segmenter.
            score_threshold: the least score of an object; 0 unless given.
            max_instances: the most objects in a picture, at most `MAX_INSTANCES`;
                `DEFAULT_INSTANCES` unless given.

        Raises:
            InvalidParameter: a limit of objects is given, and the model does not tell them apart.
            WrongTask: the model does not segment.
        """
        self._manifest = artifact.segmenter
        limits = {"score_threshold": score_threshold, "max_instances": max_instances}
        given = [f"{name}={value:g}" for name, value in limits.items() if value is not None]
        if self._manifest.instances is None and given:
            raise InvalidParameter(
                f"{given[0]}: {artifact.ref} gives the class of each pixel, and does not tell "
                "objects apart"
            )
        self._least = score_threshold or 0.0
        self._most = DEFAULT_INSTANCES if max_instances is None else max_instances

    def segment(self, outputs: Outputs, placement: Placement) -> Segmented:
        """Return the masks of one picture.

        Args:
            outputs: of the graph, for one image.
            placement: of the picture in it.

        Raises:
            TooManyPixels: the picture has more than a mask may have.
        """
        _check_size(placement)
        return segment(
            outputs.part(0, 1), self._manifest.instances, placement, self._least, self._most
        )

    def classes(self, outputs: Outputs, placement: Placement) -> NDArray[np.uint8]:
        """Return the class of each pixel of one picture, as `Segmented` has them.

        Args:
            outputs: of the graph, for one image.
            placement: of the picture in it.

        Raises:
            TooManyPixels: the picture has more than a mask may have.
        """
        _check_size(placement)
        return segment(outputs.part(0, 1), None, placement).classes

    def describe(
        self,
        outputs: Outputs,
        placement: Placement,
        filename: str | None = None,
        warning: str | None = None,
    ) -> Described:
        """Return one picture's part of the answer, as in `app.api.schemas.PictureSegments`.

        Args:
            outputs: of the graph, for one image.
            placement: of the picture in it.
            filename: of the picture.
            warning: of the picture.

        Raises:
            TooManyPixels: the picture has more than a mask may have.
        """
        segmented = self.segment(outputs, placement)
        width, height = placement.picture
        regions = [
            self._category(label) | _mask(region, height, width)
            for label, region in _regions(segmented.classes)
        ]
        content: dict[str, Any] = {"image": {"width": width, "height": height}, "classes": regions}
        counted = regions
        if segmented.objects is not None:
            content["instances"] = counted = [
                self._category(segmented.labels[place])
                | {"score": segmented.scores[place]}
                | {"bbox": region.box}
                | _mask(region, height, width)
                for place, region in _regions(segmented.objects)
            ]
        if filename is not None:
            content["filename"] = filename
        if warning is not None:
            content["warning"] = warning
        return Described(content, [each["category"] for each in counted])

    def _category(self, label: int) -> dict[str, Any]:
        manifest = self._manifest
        return {
            "category": manifest.classes[label],
            "category_id": manifest.category_ids[label],
        }

    def render(self, pictures: Sequence[Described]) -> bytes:
        """Return the answer, the JSON of `app.api.schemas.Segments`."""
        head = {"model": self._manifest.name, "version": self._manifest.version}
        contents = [picture.content for picture in pictures]
        return orjson.dumps(head | (contents[0] if len(contents) == 1 else {"pictures": contents}))

    def labels(self, segmented: Segmented) -> list[str]:
        """Return the class of each object in a picture, or each class, as `Described` has them."""
        classes = self._manifest.classes
        if segmented.objects is None:
            return [classes[value - 1] for value in np.unique(segmented.classes).tolist() if value]
        found = np.unique(segmented.objects).tolist()
        return [classes[segmented.labels[value - 1]] for value in found if value]


def segment(
    outputs: Outputs,
    rule: Instances | None,
    placement: Placement,
    least_score: float = 0.0,
    most: int = DEFAULT_INSTANCES,
) -> Segmented:
    """Return the masks of one picture.

    Args:
        outputs: of a graph, for one image.
        rule: the thresholds of objects; None if they are not told apart.
        placement: of the picture in the image.
        least_score: of an object.
        most: objects, the best ones.
    """
    probabilities = outputs.arrays[PROBABILITIES][0]
    if rule is None:
        classes, _ = _enlarged(probabilities, None, placement)
        return Segmented(classes, None, (), ())
    numbers = number_objects(probabilities, outputs.arrays[DEPTH][0], rule)
    labels, means = classify_objects(probabilities, numbers)
    scores = np.round(means, 6)  # a stable sort leaves equal ones in the order of rows
    best = np.argsort(-scores, kind="stable")
    best = best[scores[best] >= least_score][:most]
    ranks = np.zeros(len(scores) + 1, np.uint16)
    ranks[best + 1] = np.arange(1, len(best) + 1)
    found = _Objects(ranks[numbers], rule.least_probability)
    classes, objects = _enlarged(probabilities, found, placement)
    return Segmented(classes, objects, labels[best].tolist(), scores[best].tolist())


def _foreground(probabilities: Probabilities) -> NDArray[np.float32]:
    """Return the probability that a pixel is no background, float32 `[H,W]`."""
    foreground: NDArray[np.float32] = 1 - probabilities[0]
    return foreground


def _strips(placement: Placement) -> Iterator[tuple[int, int]]:
    """Yield the first column of a part of the pixels that are seen, and the one after its last."""
    left, upper, right, lower = placement.seen
    width = max(STRIP_PIXELS // max(lower - upper, 1), 1)
    for first in range(0, right - left, width):
        yield first, min(first + width, right - left)


def _check_size(placement: Placement) -> None:
    width, height = placement.picture
    if width * height > rle.MAX_PIXELS:
        raise TooManyPixels(
            f"image is {width}x{height} pixels; the limit for masks is {megapixels(rle.MAX_PIXELS)}"
        )
    if max(width, height) > LONGEST_SIDE:
        raise TooManyPixels(
            f"image is {width}x{height} pixels; the limit of a side for masks is {LONGEST_SIDE}"
        )


class _Objects(NamedTuple):
    """Numbers of the input's pixels, and the probability that a pixel of an object has."""

    numbers: NDArray[np.uint16]
    least_probability: float


def _enlarged(
    probabilities: Probabilities, objects: _Objects | None, placement: Placement
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Return the class and the object of each of the picture's pixels, `[h,w]`.

    Args:
        probabilities: of background and the classes in the input, float32 `[C+1,H,W]`.
        objects: in the input; None if there are none to be told apart.
        placement: of the picture.
    """
    foreground = _foreground(probabilities)
    labels = _labels_in(probabilities)
    one_class = len(probabilities) == 2
    is_empty = not labels and (objects is None or not objects.numbers.any())
    classes = _canvas(placement.seen, np.uint8)
    numbers = None
    if objects is not None:
        # Between the centres of two pixels, an object may reach into the outer one.
        outside = foreground < objects.least_probability
        numbers = placement.nearest(_grown(objects.numbers, outside))
    for first, after in () if is_empty else _strips(placement):
        smooth = placement.smooth(foreground, first, after)
        if objects is not None and numbers is not None:
            numbers[:, first:after] *= smooth >= objects.least_probability
        strip, highest = classes[:, first:after], 1 - smooth
        for label in labels:
            values = smooth if one_class else placement.smooth(probabilities[label], first, after)
            strip[values > highest] = label
            highest = np.maximum(highest, values)
    whole = None if numbers is None else _whole(numbers, placement)
    return _whole(classes, placement), whole


def _labels_in(probabilities: Probabilities) -> list[int]:
    """Return the classes, counted from 1, that are the most probable of a pixel."""
    if len(probabilities) == 2:
        return [1] if (probabilities[1] > probabilities[0]).any() else []
    counts = np.bincount(probabilities.argmax(axis=0).ravel())
    return [label for label in np.flatnonzero(counts).tolist() if label]


def _grown(numbers: NDArray[np.uint16], outside: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return objects that have grown by a pixel where they may, first over sides, then corners."""
    padded = np.pad(numbers, 1)
    height, width = numbers.shape
    grown = numbers.copy()
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)):
        neighbours = padded[down : down + height, right : right + width]
        np.copyto(grown, neighbours, where=outside & (grown == 0))
    return grown


def _canvas(box: tuple[int, int, int, int], kind: type[Any]) -> NDArray[Any]:
    """Return zeros for the pixels of a box; a column lies in one piece, as a mask's runs go."""
    left, upper, right, lower = box
    return np.zeros((max(lower - upper, 0), max(right - left, 0)), kind, order="F")


def _whole(seen: NDArray[Any], placement: Placement) -> NDArray[Any]:
    """Return values of all of a picture's pixels; those that are not seen are background."""
    width, height = placement.picture
    if seen.shape == (height, width):
        return seen
    canvas = _canvas((0, 0, width, height), seen.dtype.type)
    left, upper, right, lower = placement.seen
    canvas[upper:lower, left:right] = seen
    return canvas


def _regions(values: NDArray[Any]) -> list[tuple[int, rle.Region]]:
    """Return one less than each value above 0 in a picture, ascending, and its region."""
    return [(value - 1, region) for value, region in rle.encode_each(values).items() if value]


def _mask(region: rle.Region, height: int, width: int) -> dict[str, Any]:
    """Return a mask in COCO's terms."""
    return {
        "area": region.area,
        "segmentation": {"size": (height, width), "counts": region.counts.decode("ascii")},
    }
