"""The shape that every error of the service has."""

import httpx

from app.problems import Problem


def check(response: httpx.Response, status: int) -> Problem:
    """Check that an answer is a problem with this status, and return it."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.status == status
    assert problem.instance == response.request.url.path
    assert problem.request_id == response.headers["x-request-id"]
    return problem
