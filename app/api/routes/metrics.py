"""GET /metrics: the Prometheus exposition."""

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
    accept = request.headers.get("accept", "")
    content, content_type = await service_of(request).exposition.text(accept)
    return Response(content, headers={"Content-Type": content_type})
