"""`docs/http-api.md`: each request gets the answer beside it, and every endpoint is there.

The request in `README.md` is tried too.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import problems
from app.errors import ConvscopeError
from bench import ROOT
from tests.support.servers import CONVSCOPE, Server, get, started

DOCUMENT = (ROOT / "docs" / "http-api.md").read_text()
README = (ROOT / "README.md").read_text()
MORE = "…"


@dataclass(frozen=True)
class Example:
    """A command and the answer that is shown for it."""

    command: str
    status: int
    headers: dict[str, str]
    body: str


def _examples() -> list[Example]:
    found = []
    blocks = re.findall(r"```sh\n(.*?)```\n\n```http\n(.*?)```", DOCUMENT, re.DOTALL)
    for command, answer in blocks:
        head, _, body = answer.partition("\n\n")
        status, *lines = head.splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        found.append(Example(command.strip(), int(status.split()[1]), headers, body))
    return found


def _example_of_the_readme() -> Example:
    blocks = re.findall(r"```sh\n(curl.*?)```\n\n```json\n(.*?)```", README, re.DOTALL)
    ((command, body),) = blocks
    return Example(command.strip(), 200, {"content-type": "application/json"}, body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service with some of the committed models."""
    log = tmp_path_factory.mktemp("documented") / "log"
    served = {"CONVSCOPE_MODELS": "fc,resnet20,simple-cnn", "CONVSCOPE_DEFAULT_MODEL": "simple-cnn"}
    with started(
        [*CONVSCOPE, "serve", "--workers", "1"], ROOT / "models_store", log, **served
    ) as it:
        yield it


def test_every_command_has_an_answer() -> None:
    assert len(_examples()) == len(re.findall(r"^```sh", DOCUMENT, re.MULTILINE)) > 0


@pytest.mark.parametrize(
    "example", [*_examples(), _example_of_the_readme()], ids=lambda example: example.command[-48:]
)
def test_request_gets_the_answer_beside_it(
    server: Server, tmp_path: Path, example: Example
) -> None:
    headers, body = _run(example.command, server.port, tmp_path)
    assert headers.splitlines()[0].split()[1] == str(example.status)
    given = dict(line.lower().split(": ", 1) for line in headers.splitlines()[1:] if line)
    for name, value in example.headers.items():
        assert _matches(value, given[name]), name
    kind = example.headers["content-type"]
    if kind == "image/png":
        assert body.startswith(b"\x89PNG")
    elif "json" in kind:
        _compare(_read_shown(example.body), json.loads(body))
    else:
        assert _matches(example.body.strip(), body.decode().replace("\r\n", "\n").strip())


def test_every_endpoint_is_documented(server: Server) -> None:
    paths: dict[str, dict[str, Any]] = get(f"{server.url}/openapi.json").json()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^## ((?:GET|POST) .*)", DOCUMENT, re.MULTILINE)) == there


def test_every_parameter_is_documented(server: Server) -> None:
    paths: dict[str, dict[str, Any]] = get(f"{server.url}/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            section = DOCUMENT.split(f"## {method.upper()} {path}\n")[1].split("\n## ")[0]
            if path == "/filters/{index}":
                section += DOCUMENT.split("## GET /filters\n")[1].split("\n## ")[0]
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    assert f"`{parameter['name']}`" in section, (path, parameter["name"])


def test_every_problem_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", DOCUMENT, re.MULTILINE)
    expected = {
        problems.reason(error): status
        for error, (status, _) in problems.STATUSES.items()
        if error not in _parents() and status != httpx.codes.INTERNAL_SERVER_ERROR
    }
    assert {name: int(status) for name, status in rows} == expected


def _parents() -> set[type[ConvscopeError]]:
    return {base for error in problems.STATUSES for base in error.__bases__}


def _run(command: str, port: int, folder: Path) -> tuple[str, bytes]:
    """Run a command of the document; return its answer's head and body."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / ".curlrc").write_text(
        "silent\nshow-error\nfail-early\nnoproxy = *\ndump-header = headers\n"
        f"connect-to = 127.0.0.1:8000:127.0.0.1:{port}\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "CURL_HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=True,
    )
    written = re.search(r" -o (\S+)", command)
    body = (folder / written[1]).read_bytes() if written else done.stdout
    return (folder / "headers").read_text(), body


def _read_shown(text: str) -> Any:
    """Return the JSON that is shown; `…` stands as a last item "…" or as a last key."""
    text = re.sub(rf"([{{,]\s*){MORE}(\s*}})", rf'\1"{MORE}": 0\2', text)
    return json.loads(re.sub(rf"([\[,]\s*){MORE}(\s*\])", rf'\1"{MORE}"\2', text))


def _matches(shown: str, given: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.split(MORE))
    return re.fullmatch(pattern, given, re.DOTALL) is not None


def _compare(shown: Any, given: Any, where: str = "") -> None:
    """Fail unless what is shown was given; numbers may differ as those of other processors do."""
    if isinstance(shown, dict):
        expected = shown.keys() - {MORE}
        assert expected <= given.keys() if MORE in shown else expected == given.keys(), where
        for key in expected:
            _compare(shown[key], given[key], f"{where}/{key}")
    elif isinstance(shown, list):
        whole = shown[-1:] != [MORE]
        items = shown if whole else shown[:-1]
        assert len(given) == len(items) if whole else len(given) > len(items), where
        for index, item in enumerate(items):
            _compare(item, given[index], f"{where}/{index}")
    elif isinstance(shown, str):
        assert _matches(shown, given), where
    elif isinstance(shown, float):
        assert given == pytest.approx(shown, rel=0.02, abs=0.02), where
    else:
        assert given == shown, where
