"""A real nginx before a service."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.harness.processes import ServerProcess, free_port
from tests.support.servers import HOST, Server

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin") or shutil.which(
    "nginx"
)
needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""
SERVER = """
    server {{
        listen {host}:{port};
        location {location} {{
            proxy_pass http://{host}:{service}{strip};
            {header}
        }}
    }}
"""


def listens(port: int) -> bool:
    with socket.create_connection((HOST, port), timeout=5):
        return True


@contextmanager
def nginx(
    folder: Path, service: Server, *, location: str = "/vision/", strip: str = "", header: str = ""
) -> Iterator[str]:
    """Run nginx before a service; yield its address."""
    port = free_port()
    http = SERVER.format(
        host=HOST,
        port=port,
        service=service.port,
        location=location,
        strip=strip,
        header=header,
    )
    with configured(folder, http, port):
        yield f"http://{HOST}:{port}"


@contextmanager
def configured(folder: Path, http: str, port: int) -> Iterator[None]:
    """Run nginx with a configuration, that of `http`, which lets it listen at a port."""
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, http=http))
    with ServerProcess(
        [str(NGINX), "-p", str(folder), "-c", str(configuration)],
        directory=folder,
        environment={},
        log=folder / "nginx.log",
    ) as process:
        process.wait_until(lambda: listens(port), 30)
        yield
