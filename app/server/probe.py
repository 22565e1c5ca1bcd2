"""`python -m app.server.probe`: whether the services on this machine are ready; for containers.

It finds a service by the directory with its address, so it needs no port, and asks it directly,
whatever proxy the environment names. It imports little, because it runs every few seconds.
"""

import sys
from http.client import HTTPConnection, HTTPException

from app.server.run_directory import Address, reachable, running_services

TIMEOUT_SECONDS = 4.0


def main() -> None:
    """Exit with status 0 if there is a service and all are ready; otherwise print why not."""
    services = running_services()
    if not services:
        sys.exit("no service of this user runs")
    for address in services:
        if (fault := _fault(address)) is not None:
            sys.exit(fault)


def _fault(address: Address) -> str | None:
    host, port = address
    connection = HTTPConnection(reachable(host), port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, HTTPException) as exc:
        return f"{host} port {port}: {exc}"
    finally:
        connection.close()
    return None if answer.status == 200 else text


if __name__ == "__main__":
    main()
