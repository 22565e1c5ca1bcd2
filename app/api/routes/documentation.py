"""GET /docs: the API's documentation, to read and to try. It loads nothing from another host."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.routing import Mount

from app.api.files import WholeFiles

router = APIRouter(include_in_schema=False)

_FILES = "/static-offline-docs"


@router.get("/docs")
async def documentation(request: Request) -> HTMLResponse:
    """The API's documentation in Swagger UI."""
    framework: FastAPI = request.app
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}{framework.openapi_url}",
        title=framework.title,
        swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_FILES}/favicon.png",
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )


def mount() -> Mount:
    """Return the route to Swagger UI's files."""
    return Mount(_FILES, WholeFiles(Path(fastapi_offline.__file__).parent / "static"))
