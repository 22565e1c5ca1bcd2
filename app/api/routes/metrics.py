"""GET /metrics: the Prometheus exposition."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.dependencies import service_of

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Sums over all worker processes."}
    },
)
async def metrics(request: Request) -> Response:
    """Every metric, summed over the worker processes."""
    service = service_of(request)
    accept = request.headers.get("accept", "")
    service.metrics.flush()
    # Not in the service's own threads: metrics are read when those are busy decoding.
    content, content_type = await asyncio.to_thread(service.metrics.render, accept)
    return Response(content, headers={"Content-Type": content_type})
