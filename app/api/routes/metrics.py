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
    service = service_of(request)
    accept = request.headers.get("accept", "")
    service.metrics.flush()
    # In a thread, it would fight the event loop for the interpreter's lock and take ten times as
    # long under load.
    content, content_type = service.metrics.render(accept)
    return Response(content, headers={"Content-Type": content_type})
