"""The application behind a client that calls it in this process."""

from typing import cast

import httpx

from app.main import Application


def application_of(client: httpx.AsyncClient) -> Application:
    return cast(Application, cast(httpx.ASGITransport, client._transport).app)
