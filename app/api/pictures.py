"""The images in a request's body: read and decoded within the request's time limit."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from fastapi import Request

from app.api.dependencies import service_of
from app.api.openapi import TIMEOUT_HEADER
from app.api.state import Service
from app.api.uploads.body import read_files
from app.api.uploads.upload import Upload, UploadLimits
from app.artifact.directory import Artifact
from app.artifact.tensors import Images
from app.errors import DeadlineExceeded, ImageError, InvalidParameter, TooManyPixels
from app.images import RgbImage
from app.images.decode import decode_placed, is_bounded, warning_of
from app.images.placement import Placement
from app.inference.batcher import Answer
from app.settings import Settings

# Handing a smaller image to a thread takes longer than decoding it in the event loop.
INLINE_BYTES = 64 << 10
INLINE_PIXELS = 128 * 128

_TIMEOUT = TIMEOUT_HEADER.lower().encode()


@dataclass(frozen=True)
class Picture:
    """The only image of a request.

    Attributes:
        data: the file as it was sent.
        image: as the model takes it, uint8 `[H,W,3]`.
        placement: of the picture in it.
        deadline: of the answer, in the event loop's time.
    """

    data: bytes
    image: RgbImage
    placement: Placement
    deadline: float


@dataclass(frozen=True)
class Answered:
    """The images of a request, and the model's answer for them.

    Attributes:
        files: as they were sent.
        images: as the model takes them, uint8 `[N,H,W,3]`.
        placements: of the pictures in them.
        answer: the model's.
        read_seconds: the time to read the body.
        decode_seconds: the time to decode all images.
    """

    files: Sequence[Upload]
    images: Images
    placements: Sequence[Placement]
    answer: Answer
    read_seconds: float
    decode_seconds: float

    @property
    def filenames(self) -> list[str | None]:
        """The names of the files."""
        return [file.filename for file in self.files]

    @property
    def warnings(self) -> list[str | None]:
        """The faults of files that were decoded all the same."""
        return [warning_of(file.data) for file in self.files]

    @property
    def timing(self) -> str:
        """The value of `Server-Timing`."""
        return server_timing(self.read_seconds, self.decode_seconds, self.answer)

    def count(self, service: Service, artifact: Artifact, labels: Sequence[str]) -> None:
        """Count the request when its answer is made, with the labels given in it."""
        service.metrics.observe_stages(self.read_seconds, self.decode_seconds)
        service.model_metrics[artifact.ref].answered(labels, self.answer.queue_seconds)


@asynccontextmanager
async def answered_pictures(
    request: Request, artifact: Artifact, *, most: tuple[int, str] | None = None
) -> AsyncIterator[Answered]:
    """Read and decode the images of a request, and ask the model about them.

    The block ends at the request's deadline; its bodies are held until then.

    Args:
        request: with the images.
        artifact: the model.
        most: a limit of images, where it may be lower than the service's, and its reason.

    Raises:
        UploadError: the body is wrong, or holds too many images.
        ImageError: a file is not an image that can be decoded.
        PredictionError: the model takes no more, failed, or all took too long.
    """
    service = service_of(request)
    limits = service.upload_limits
    if most is not None and most[0] <= limits.max_images:
        limits = replace(limits, max_images=most[0], reason=most[1])
    batcher = service.batchers[artifact.ref]
    async with _read(request, artifact, limits, batcher.check_wait) as posted:
        answer = await batcher.submit(posted.images, posted.deadline)
        yield Answered(
            posted.files,
            posted.images,
            posted.placements,
            answer,
            posted.read_seconds,
            posted.decode_seconds,
        )


@asynccontextmanager
async def one_picture(request: Request, artifact: Artifact) -> AsyncIterator[Picture]:
    """Read and decode the only image of a request, and end the block at the request's deadline.

    Raises:
        UploadError: the body is wrong, or holds more than one image.
        ImageError: the file is not an image that can be decoded.
        DeadlineExceeded: decoding or the block took too long.
    """
    limits = replace(service_of(request).upload_limits, max_images=1)
    async with _read(request, artifact, limits, lambda: None) as posted:
        data, image = posted.files[0].data, posted.images[0]
        yield Picture(data, image, posted.placements[0], posted.deadline)


@dataclass(frozen=True)
class _Posted:
    """The images of a request, as in `Answered`, and the deadline of the answer."""

    files: Sequence[Upload]
    images: Images
    placements: Sequence[Placement]
    deadline: float
    read_seconds: float
    decode_seconds: float


@asynccontextmanager
async def _read(
    request: Request, artifact: Artifact, limits: UploadLimits, check: Callable[[], None]
) -> AsyncIterator[_Posted]:
    """Read and decode the images of a request, and end the block at the request's deadline.

    Args:
        request: with the images.
        artifact: the model that they are decoded for.
        limits: of the body.
        check: is called before the images are decoded, and may refuse the request.
    """
    started = time.perf_counter()
    service = service_of(request)
    headers = dict(request.scope["headers"])
    timeout = timeout_of(headers, service.settings)
    with service.bodies.hold() as hold:
        files = await read_files(headers, request.receive, limits, hold)
        deadline = asyncio.get_running_loop().time() + timeout
        read = time.perf_counter()
        check()
        try:
            async with asyncio.timeout_at(deadline):
                images, placements = await _decode_images(service, artifact, files, deadline)
                decoded = time.perf_counter()
                yield _Posted(files, images, placements, deadline, read - started, decoded - read)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {timeout:g} s") from exc


def timeout_of(headers: Mapping[bytes, bytes], settings: Settings) -> float:
    """Return the seconds that the request may take: the client's wish, or else the setting.

    Raises:
        InvalidParameter: the header is not a whole number of milliseconds above 0.
    """
    wanted = headers.get(_TIMEOUT)
    if wanted is None:
        return settings.request_timeout_seconds
    # Ten digits are a hundred days.
    if not (wanted.isdigit() and len(wanted) <= 10 and int(wanted)):
        given = wanted[:64].decode("latin-1")
        raise InvalidParameter(
            f"{TIMEOUT_HEADER}={given!r}: must be a whole number of milliseconds from 1 to "
            f"{settings.max_request_timeout_seconds * 1000:g}; a higher one counts as that"
        )
    return min(int(wanted) / 1000, settings.max_request_timeout_seconds)


async def _decode_images(
    service: Service, artifact: Artifact, files: Sequence[Upload], deadline: float
) -> tuple[Images, list[Placement]]:
    """Decode all images of a request to the model's size, uint8 `[N,H,W,3]`; return their places.

    One after the other: other requests get their turn in between, and none is begun after the
    deadline or for a client that has gone.

    Raises:
        ImageError: a file is not an image that can be decoded.
        QueueFull: the first would wait too long for its decoding.
        TimeoutError: the deadline has passed.
    """
    images = np.empty((len(files), *artifact.manifest.image_size, 3), np.uint8)
    placements = []
    try:
        for index, file in enumerate(files):
            if index:
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(0)
            first = index == 0
            images[index], placement = await _decode_image(
                service, artifact, file.data, deadline, first=first
            )
            placements.append(placement)
    except ImageError as exc:
        if len(files) == 1:
            raise
        name = f" ({file.filename})" if file.filename else ""
        raise type(exc)(f"image {index}{name} of {len(files)}: {exc}") from exc
    return images, placements


async def _decode_image(
    service: Service, artifact: Artifact, data: bytes, deadline: float, *, first: bool
) -> tuple[RgbImage, Placement]:
    """Decode one image, uint8 `[H,W,3]`; a large one in a thread.

    Only the first of a request is refused, before any work is done for it.
    """
    limit, whole = service.settings.max_pixels, service.settings.max_pixels_whole
    manifest = artifact.manifest
    decode_fitting = partial(decode_placed, data, manifest.image_size, resize=manifest.resize)
    if len(data) <= INLINE_BYTES and is_bounded(data):
        try:
            inline = min(limit, INLINE_PIXELS)
            return decode_fitting(inline, max_pixels_whole=min(whole, inline))
        except TooManyPixels:  # few bytes can hold many pixels: decode them in a thread
            pass
    if first:
        service.decode_threads.check_wait()
    async with asyncio.timeout_at(deadline):
        return await service.decode(decode_fitting, limit, max_pixels_whole=whole)


def server_timing(read: float, decode: float, answer: Answer) -> str:
    """Return the header's value: the milliseconds of each stage."""
    return (
        f"read;dur={read * 1000:.3f}, decode;dur={decode * 1000:.3f}, "
        f"queue;dur={answer.queue_seconds * 1000:.3f}, "
        f"inference;dur={answer.inference_seconds * 1000:.3f}"
    )
