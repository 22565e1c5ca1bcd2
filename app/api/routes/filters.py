"""GET /filters and /filters/{index}: a layer's weights to look at; PNG or JSON.

The layers are the convolutions, and a fully connected first layer as pictures of its input.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from numpy.typing import NDArray

from app.api.dependencies import artifact_of, parameters_once, service_of
from app.api.negotiation import JSON, PNG, as_json, choose, respond_unless_known
from app.api.openapi import document_problems
from app.api.queries import FilterQuery, FiltersQuery
from app.api.schemas import Filters
from app.artifact.directory import Artifact, recent_filters
from app.artifact.files import FILTERS, LAYERS, ONNX_GRAPH, RESPONSES, TORCHSCRIPT_GRAPH
from app.artifact.strongest import read_strongest
from app.errors import InvalidParameter, NothingToSee, UnknownFilter, UnknownLayer
from app.explore.filters import filter_tiles, strongest_tiles
from app.explore.layers import biases_of
from app.explore.pictures import choose_grid, choose_scale, enlarged, tile_grid

router = APIRouter(tags=["what is inside"], dependencies=[Depends(parameters_once)])

MAX_JSON_WEIGHTS = 1 << 20

_OFFERS = {"png": PNG, "json": JSON}
_SOURCES = (FILTERS, ONNX_GRAPH, TORCHSCRIPT_GRAPH, LAYERS, RESPONSES)
"""The files of which an answer is made."""

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Filters,
        "description": "A picture, or the weights with their shape.",
        "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "The client's copy is current (If-None-Match)."},
    **document_problems(404, 406, 422),
}

Weights = NDArray[np.float32]
Render = Callable[[], bytes | str]


@router.get("/filters", response_class=Response, responses=_RESPONSES)
async def show_filters(request: Request, query: Annotated[FiltersQuery, Query()]) -> Response:
    """The weights of the first layer's filters, or the strongest responses of a deeper layer's.

    A filter's colours range from its smallest weight to its largest. For a layer with very many
    filters, only the responses of the first ones are kept.
    """
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
    # First, so that a layer that does not exist is a 404 with any If-None-Match.
    render = await service.explore(prepare, artifact, query, index, columns)
    files = artifact.manifest.files
    hashes = [files[name].sha256 for name in _SOURCES if name in files]
    basis = (artifact.ref, *hashes, query.layer, index, query.scale, columns, query.show)
    return await respond_unless_known(request, media_type, basis, lambda: service.explore(render))


def _prepare_png(
    artifact: Artifact, query: FilterQuery, index: int | None, columns: int | None
) -> Render:
    """Check the parameters of a picture; return the function that draws it."""
    layer, weights = _find_layer(artifact, recent_filters(artifact), query.layer)
    if index is not None:
        _check_index(index, len(weights))
    tiles = _tiles(artifact, layer, weights, query, index)
    if index is not None:
        _, height, width, _ = tiles.shape
        scale = choose_scale(height, width, query.scale)
        return lambda: enlarged(tiles[0], scale)
    columns, scale = choose_grid(tiles, columns, query.scale)
    return lambda: enlarged(tile_grid(tiles, columns), scale)


def _tiles(
    artifact: Artifact, layer: str, weights: Weights, query: FilterQuery, index: int | None
) -> NDArray[np.uint8]:
    """Return the pictures of all filters, or of one, uint8 `[filters,height,width,3]`."""
    chosen = slice(None) if index is None else slice(index, index + 1)
    if not _shows_strongest(artifact, layer, query):
        return filter_tiles(weights[chosen])
    patches = read_strongest(artifact, layer).patches
    kept = len(patches)
    if index is None or index < kept:
        return strongest_tiles(patches[chosen])
    if query.show is None:
        return filter_tiles(weights[chosen])
    raise NothingToSee(
        f"only the responses of filters 0 to {kept - 1} of {layer} were kept; "
        f"show=weights draws filter {index}"
    )


def _shows_strongest(artifact: Artifact, layer: str, query: FilterQuery) -> bool:
    """Whether a picture shows the strongest patches: by default for every layer but the first."""
    if query.show is not None:
        return query.show == "responses"
    layers = [record.name for record in artifact.manifest.layers if record.is_convolution]
    return layer in layers[1:] and RESPONSES in artifact.manifest.files


def _prepare_json(
    artifact: Artifact,
    query: FilterQuery,
    index: int | None,
    columns: int | None,  # noqa: ARG001 - of a picture
) -> Render:
    """Check the parameters of JSON; return the function that writes it."""
    layers = recent_filters(artifact)
    layer, weights = _find_layer(artifact, layers, query.layer)
    if index is not None:
        _check_index(index, len(weights))
        weights = weights[index]
    if weights.size > MAX_JSON_WEIGHTS:
        raise InvalidParameter(
            f"{layer} has {weights.size} weights; the limit for JSON is {MAX_JSON_WEIGHTS}: "
            "ask for one filter, or for a picture"
        )
    return partial(_as_json, artifact, list(layers), layer, index, weights)


def _as_json(
    artifact: Artifact, layers: list[str], layer: str, index: int | None, weights: Weights
) -> bytes:
    content: dict[str, Any] = {
        "model": artifact.manifest.name,
        "version": artifact.manifest.version,
        "layer": layer,
        "layers": layers,
        "shape": list(weights.shape),
        "weights": weights,
    }
    if index is not None:
        biases = biases_of(artifact, layer)
        more = {
            "index": index,
            "bias": None if biases is None else biases[index],
            "responses": _strongest(artifact, layer, index),
        }
        content |= {name: value for name, value in more.items() if value is not None}
    return as_json(content)


def _strongest(artifact: Artifact, layer: str, index: int) -> list[dict[str, Any]] | None:
    try:
        strongest = read_strongest(artifact, layer)
    except NothingToSee:
        return None
    if index >= len(strongest.images):
        return None
    return [
        {"image": image, "row": row, "column": column, "value": value}
        for image, (row, column), value in zip(
            strongest.images[index].tolist(),
            strongest.corners[index].tolist(),
            strongest.values[index],
            strict=True,
        )
    ]


def _find_layer(
    artifact: Artifact, layers: Mapping[str, Weights], wanted: str | None
) -> tuple[str, Weights]:
    if not layers:
        architecture = artifact.manifest.architecture
        raise UnknownLayer(f"{artifact.ref} ({architecture}) has no layer with filters")
    layer = wanted or next(iter(layers))
    if layer not in layers:
        raise UnknownLayer(f"no layer {layer!r} with filters; there are: {', '.join(layers)}")
    return layer, layers[layer]


def _check_index(index: int, count: int) -> None:
    if index >= count:
        wanted = str(index)[:16]
        raise UnknownFilter(f"no filter {wanted}; the layer has {count}, from 0 to {count - 1}")
