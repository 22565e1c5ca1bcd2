"""GET /filters and /filters/{index}: a layer's weights to look at; PNG or JSON.

The layers are the convolutions, and a fully connected first layer as pictures of its input.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray

from app import drawing, http_errors
from app.contract import FILTERS, Artifact
from app.errors import InvalidParameter, UnknownFilter, UnknownLayer
from app.representations import JSON, PNG, Representation, choose
from app.routes import artifact_of, service_of
from app.schemas import FilterQuery, Filters, FiltersQuery
from app.store import key_of

router = APIRouter(tags=["what is inside"])

MAX_PICTURE_PIXELS = 10_000_000
MAX_JSON_WEIGHTS = 1 << 20
DEFAULT_SIDE = 1024
MAX_DEFAULT_SCALE = 16

_OFFERS = {"png": PNG, "json": JSON}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A picture, or the weights with their shape.",
        "content": {
            PNG: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": {"$ref": "#/components/schemas/Filters"}},
        },
    },
    304: {"description": "The client's copy is still right (If-None-Match)."},
    **http_errors.documented(404, 406, 422),
}

Weights = NDArray[np.float32]
Render = Callable[[], bytes | str]


@router.get("/filters", response_class=Response, responses=_RESPONSES)
async def show_filters(request: Request, query: Annotated[FiltersQuery, Query()]) -> Response:
    """All filters of a layer: each scaled from its smallest to its largest weight."""
    return await _answer(request, query, None, query.columns)


@router.get("/filters/{index}", response_class=Response, responses=_RESPONSES)
async def show_filter(
    request: Request,
    index: Annotated[int, Path(ge=0, description="Which filter, from 0.")],
    query: Annotated[FilterQuery, Query()],
) -> Response:
    """One filter of a layer."""
    return await _answer(request, query, index, None)


async def _answer(
    request: Request, query: FilterQuery, index: int | None, columns: int | None
) -> Response:
    service, artifact = service_of(request), artifact_of(request, query)
    media_type = choose(request, _OFFERS, query.format)
    prepare = _prepare_json if media_type == JSON else _prepare_png
    # Before the client's copy is looked at: what does not exist is a 404 with any If-None-Match.
    render = await service.in_thread(prepare, artifact, query, index, columns)
    sha256 = artifact.manifest.files[FILTERS].sha256
    parameters = (*key_of(artifact), query.layer, index, query.scale, columns)
    representation = Representation(request, media_type, sha256, *parameters)
    unchanged = representation.not_modified()
    if unchanged is not None:
        return unchanged
    return representation.respond(await service.in_thread(render))


def _prepare_png(
    artifact: Artifact, query: FilterQuery, index: int | None, columns: int | None
) -> Render:
    """Check all that can be wrong with a picture; return what draws it."""
    _, weights = _find_layer(artifact, artifact.filters(), query.layer)
    count, _, height, width = weights.shape
    if index is not None:
        _check_index(index, count)
        return partial(drawing.single_filter, weights, index, _scale(height, width, query.scale))
    columns = min(columns or _default_columns(count), count)
    rows = -(-count // columns)
    scale = _scale(rows * (height + 1) + 1, columns * (width + 1) + 1, query.scale)
    return partial(drawing.filter_grid, weights, scale, columns)


def _prepare_json(
    artifact: Artifact,
    query: FilterQuery,
    index: int | None,
    columns: int | None,  # noqa: ARG001 - of a picture
) -> Render:
    """Check all that can be wrong with JSON; return what writes it."""
    layers = artifact.filters()
    layer, weights = _find_layer(artifact, layers, query.layer)
    if index is not None:
        _check_index(index, len(weights))
        weights = weights[index]
    if weights.size > MAX_JSON_WEIGHTS:
        raise InvalidParameter(
            f"{weights.size} weights are to be shown of {layer}; JSON holds at most "
            f"{MAX_JSON_WEIGHTS}: ask for one filter, or for a picture"
        )
    return partial(_as_json, artifact, list(layers), layer, index, weights)


def _as_json(
    artifact: Artifact, layers: list[str], layer: str, index: int | None, weights: Weights
) -> str:
    return Filters(
        model=artifact.manifest.name,
        version=artifact.manifest.version,
        layer=layer,
        layers=layers,
        index=index,
        shape=list(weights.shape),
        weights=weights.tolist(),
    ).model_dump_json(exclude_none=True)


def _find_layer(
    artifact: Artifact, layers: Mapping[str, Weights], wanted: str | None
) -> tuple[str, Weights]:
    if not layers:
        manifest = artifact.manifest
        raise UnknownLayer(
            f"{manifest.name}/{manifest.version} ({manifest.architecture}) "
            "has no layer with filters"
        )
    layer = wanted or next(iter(layers))
    if layer not in layers:
        raise UnknownLayer(f"no layer {layer!r} with filters; there are: {', '.join(layers)}")
    return layer, layers[layer]


def _check_index(index: int, count: int) -> None:
    if index >= count:
        wanted = str(index)[:16]
        raise UnknownFilter(f"no filter {wanted}; the layer has {count}, from 0 to {count - 1}")


def _scale(height: int, width: int, wanted: int | None) -> int:
    """Return the scale for a picture of so many weights: what is wanted, if it is not too much."""
    scale = wanted or max(1, min(MAX_DEFAULT_SCALE, DEFAULT_SIDE // max(height, width)))
    if height * width * scale**2 > MAX_PICTURE_PIXELS:
        raise InvalidParameter(
            f"at scale {scale} the picture would be {width * scale}x{height * scale} pixels; "
            f"the limit is {MAX_PICTURE_PIXELS / 1e6:g} megapixels"
        )
    return scale


def _default_columns(count: int) -> int:
    """A power of two, so that the usual numbers of filters fill their last row."""
    return int(2 ** math.ceil(math.log2(count) / 2))
