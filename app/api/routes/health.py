"""GET /health/live and /health/ready: for probes.

Live means that the event loop answers. Ready means that every model takes work and completes it,
and that the process is not about to stop.
"""

from fastapi import APIRouter, Request

from app.api.dependencies import service_of
from app.api.openapi import document_problems
from app.api.schemas import Health
from app.errors import NotReady

router = APIRouter(prefix="/health", tags=["operation"])


@router.get("/live", response_model=Health, response_model_exclude_none=True)
async def live() -> Health:
    """Whether the process answers at all; otherwise restart it."""
    return Health(status="live")


@router.get(
    "/ready",
    response_model=Health,
    response_model_exclude_none=True,
    responses=document_problems(503),
)
async def ready(request: Request) -> Health:
    """Whether the process serves all its models; otherwise send it no requests."""
    service = service_of(request)
    if service.stopping.is_set():
        raise NotReady("the service is stopping")
    if broken := service.broken:
        raise NotReady(f"not serving: {', '.join(broken)}")
    return Health(status="ready", models=list(service.batchers))
