"""POST /activations: a layer's output for an image; PNG or JSON."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, as_json, choose
from app.api.openapi import document_body, document_problems
from app.api.pictures import one_picture
from app.api.queries import ActivationsQuery
from app.api.schemas import Activations
from app.artifact.directory import Artifact, recent_filters
from app.artifact.files import PIXELS
from app.errors import InvalidParameter, UnknownFilter
from app.explore.feature_maps import map_tiles
from app.explore.layers import Inside, find_layer
from app.explore.pictures import choose_grid, choose_scale, enlarged, tile_grid
from app.images import RgbImage

router = APIRouter(tags=["what is inside"], dependencies=[Depends(parameters_once)])

MAX_JSON_VALUES = 1 << 18

_OFFERS = {"png": PNG, "json": JSON}


@router.post(
    "/activations",
    response_class=Response,
    responses=document_problems(400, 404, 406, 408, 413, 415, 422, 500, 503, 504)
    | {
        200: {
            "model": Activations,
            "description": "A picture of all channels, or their values.",
            "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    openapi_extra=document_body(several=False),
)
async def activations(request: Request, query: Annotated[ActivationsQuery, Query()]) -> Response:
    """Show a layer's output for one image: its feature maps, or the values of its units."""
    service = service_of(request)
    artifact = artifact_of(request, query)
    media_type = choose(request, _OFFERS, query.format)
    render = _as_json if media_type == JSON else _as_png
    as_seen = (query.layer, query.channel, media_type) == (PIXELS, None, PNG)
    layer = PIXELS if as_seen else _check_layer(artifact, query)
    async with one_picture(request, artifact) as picture:
        if as_seen:
            content = await service.explore(_as_seen, picture.image, query)
        else:
            inside = await service.look_inside(artifact)
            (maps,) = await service.explore(inside.layers.outputs, picture.image, [layer])
            content = await service.explore(render, inside, layer, maps, query)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


def _check_layer(artifact: Artifact, query: ActivationsQuery) -> str:
    """Return the layer's name; an unknown one is refused before the image is read."""
    layer = find_layer(artifact, query.layer)
    count = layer.shape[0]
    if query.channel is not None and query.channel >= count:
        wanted = str(query.channel)[:16]
        raise UnknownFilter(f"no channel {wanted}; the layer has {count}, from 0 to {count - 1}")
    return layer.name


def _as_seen(image: RgbImage, query: ActivationsQuery) -> bytes:
    """Draw the image as the model takes it, in its own colours."""
    height, width, _ = image.shape
    return enlarged(image, choose_scale(height, width, query.scale))


def _as_png(
    inside: Inside, layer: str, maps: NDArray[np.float32], query: ActivationsQuery
) -> bytes:
    """Draw all channels or one; a channel of the first convolution stands beside its filter."""
    filters = (
        recent_filters(inside.artifact).get(layer) if layer == inside.first_convolution else None
    )
    maps = maps.reshape(len(maps), *(maps.shape[1:] or (1, 1)))
    if query.channel is not None:
        chosen = slice(query.channel, query.channel + 1)
        maps, filters = maps[chosen], None if filters is None else filters[chosen]
    tiles = map_tiles(maps, filters)
    columns, scale = choose_grid(tiles, query.columns, query.scale)
    return enlarged(tile_grid(tiles, columns), scale)


def _as_json(
    inside: Inside, layer: str, maps: NDArray[np.float32], query: ActivationsQuery
) -> bytes:
    if query.channel is not None:
        maps = maps[query.channel]
    if maps.size > MAX_JSON_VALUES:
        raise InvalidParameter(
            f"{layer} has {maps.size} values; the limit for JSON is {MAX_JSON_VALUES}: "
            "ask for one channel, or for a picture"
        )
    manifest = inside.artifact.manifest
    content = {
        "model": manifest.name,
        "version": manifest.version,
        "layer": layer,
        "layers": [PIXELS, *(record.name for record in manifest.layers)],
        "channel": query.channel,
        "shape": list(maps.shape),
        "values": maps,
    }
    return as_json(content)
