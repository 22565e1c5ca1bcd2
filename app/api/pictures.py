"""The images that come with a request: read and decoded, within the time that it is given."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
from fastapi import Request

from app.api import uploads
from app.api.openapi import TIMEOUT_HEADER
from app.api.routes import service_of
from app.api.state import Service
from app.api.uploads import Upload
from app.artifact.directory import Artifact
from app.artifact.tensors import Images
from app.errors import DeadlineExceeded, ImageError, InvalidParameter, TooManyPixels
from app.images.decode import decode
from app.settings import Settings

# What a thread would take longer to be handed than the event loop takes to decode it.
INLINE_BYTES = 64 << 10
INLINE_PIXELS = 128 * 128

_TIMEOUT = TIMEOUT_HEADER.lower().encode()


@dataclass(frozen=True)
class PostedImage:
    """The one image of a request.

    Attributes:
        data: the file as it was sent.
        image: as the model takes it, uint8 `[H,W,3]`.
        deadline: when to give up, in the event loop's time.
    """

    data: bytes
    image: Images
    deadline: float


@asynccontextmanager
async def one_image(request: Request, artifact: Artifact) -> AsyncIterator[PostedImage]:
    """Read the request's one image; what is done with it has to be done by its deadline.

    Raises:
        UploadError: the body cannot be taken, or holds more than one image.
        ImageError: it is not a picture that is read.
        DeadlineExceeded: reading it, or the block, did not end in time.
    """
    service = service_of(request)
    headers = dict(request.scope["headers"])
    patience = patience_of(headers, service.settings)
    limits = replace(service.upload_limits, max_images=1)
    with service.bodies.hold() as hold:
        received = await uploads.read(headers, request.receive, limits, hold)
        deadline = asyncio.get_running_loop().time() + patience
        try:
            async with asyncio.timeout_at(deadline):
                images = await decode_all(service, artifact, received, deadline)
                yield PostedImage(received[0].data, images[0], deadline)
        except (TimeoutError, DeadlineExceeded) as exc:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from exc


def patience_of(headers: Mapping[bytes, bytes], settings: Settings) -> float:
    """Return the seconds that the client, or else the setting, gives the answer."""
    wanted = headers.get(_TIMEOUT)
    if wanted is None:
        return settings.request_timeout_seconds
    # Ten digits are a hundred days.
    if not (wanted.isdigit() and len(wanted) <= 10 and int(wanted)):
        given = wanted[:64].decode("latin-1")
        raise InvalidParameter(
            f"{TIMEOUT_HEADER}={given!r}: must be a whole number of milliseconds from 1 to "
            f"{settings.max_request_timeout_seconds * 1000:g}; more counts as that"
        )
    return min(int(wanted) / 1000, settings.max_request_timeout_seconds)


async def decode_all(
    service: Service,
    artifact: Artifact,
    received: Sequence[Upload],
    deadline: float,
) -> Images:
    """Decode all images of a request: uint8 `[N,H,W,3]`; TimeoutError at the deadline.

    One at a time, so that others have their turn between two, and none is begun for nobody.
    """
    size = artifact.manifest.image_size
    images = np.empty((len(received), *size, 3), np.uint8)
    try:
        for index, upload in enumerate(received):
            if index:
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(0)
            images[index] = await _decode_one(service, upload.data, size, deadline)
    except ImageError as exc:
        if len(received) == 1:
            raise
        name = f" ({upload.filename})" if upload.filename else ""
        raise type(exc)(f"image {index}{name} of {len(received)}: {exc}") from exc
    return images


async def _decode_one(
    service: Service, data: bytes, size: tuple[int, int], deadline: float
) -> Images:
    """Decode one image: uint8 `[H,W,3]`; a large one in a thread."""
    limit, whole = service.settings.max_pixels, service.settings.max_pixels_whole
    if len(data) <= INLINE_BYTES:
        try:
            inline = min(limit, INLINE_PIXELS)
            return decode(data, size, inline, max_pixels_whole=min(whole, inline))
        except TooManyPixels:  # few bytes can hold many pixels; in the thread, then
            pass
    async with asyncio.timeout_at(deadline):
        return await service.decode(decode, data, size, limit, max_pixels_whole=whole)
