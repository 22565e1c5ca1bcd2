"""The rules of `docs/architecture.md` that no single file shows, held by the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 350

# What each module of the service may import of the service; a package stands for its modules.
ALLOWED: dict[str, set[str]] = {
    "app": set(),
    "app.errors": set(),
    "app.evaluation": set(),
    "app.manifest": {"app.evaluation"},
    "app.outputs": set(),
    "app.layout": {"app.manifest"},
    "app.contract": {
        "app.errors",
        "app.evaluation",
        "app.layout",
        "app.manifest",
        "app.outputs",
    },
    "app.drawing": set(),
    "app.conformal": {"app.contract"},
    "app.saliency": {"app.contract"},
    "app.heat_maps": {"app.drawing", "app.saliency"},
    "app.feature_maps": {"app.drawing", "app.heat_maps"},
    "app.sheets": {"app.contract", "app.errors"},
    "app.responses": {"app.contract", "app.drawing", "app.errors", "app.sheets"},
    "app.examples": {"app.contract", "app.drawing", "app.errors", "app.sheets"},
    "app.backends": {"app.contract", "app.errors"},
    "app.settings": {"app.backends", "app.errors"},
    "app.eight_bit": {"app.errors"},
    "app.metadata": {"app.errors"},
    "app.images": {"app.eight_bit", "app.errors", "app.metadata"},
    "app.uploads": {"app.errors"},
    "app.batcher": {"app.backends", "app.contract", "app.errors"},
    "app.store": {"app.backends", "app.contract", "app.errors"},
    "app.inside": {"app.backends", "app.contract", "app.errors", "app.store"},
    "app.metrics": set(),
    "app.logs": set(),
    "app.cpus": set(),
    "app.bodies": {"app.errors"},
    "app.gate": {"app.errors"},
    "app.schemas": {"app.contract", "app.errors", "app.saliency"},
    "app.queries": {"app.contract", "app.saliency"},
    "app.http_errors": {"app.errors", "app.schemas"},
    "app.representations": {"app.errors"},
    "app.service": {
        "app.backends",
        "app.batcher",
        "app.bodies",
        "app.contract",
        "app.errors",
        "app.gate",
        "app.inside",
        "app.metrics",
        "app.settings",
        "app.store",
        "app.uploads",
    },
    "app.middleware": {"app.errors", "app.http_errors", "app.logs", "app.metrics"},
    "app.connections": {"app.errors", "app.http_errors", "app.metrics", "app.settings"},
    "app.protocol": {
        "app.connections",
        "app.errors",
        "app.heads",
        "app.http_errors",
        "app.logs",
        "app.metrics",
        "app.middleware",
        "app.shedding",
    },
    "app.heads": {"app.errors", "app.shedding"},
    "app.shedding": {"app.errors", "app.http_errors"},
    "app.server": {"app.connections", "app.metrics", "app.protocol", "app.settings"},
}
TOP = {"app.main", "app.cli", "app.routes", "app.supervisor"}
TRAINING_MAY_IMPORT = (
    "app.contract",
    "app.conformal",
    "app.errors",
    "app.backends",
    "app.images",
    "app.drawing",
)


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if _is_module(name) else node.module


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _room(module: str) -> str:
    """`app.backends.onnx_cpu` is part of `app.backends`."""
    return ".".join(module.split(".")[:2])


def _named(path: Path, package: str) -> bool:
    return any(name.split(".")[0] == package for name in _imports(path))


@pytest.mark.parametrize("path", _files("app"), ids=_module)
def test_imports_of_the_service_point_one_way(path: Path) -> None:
    room = _room(_module(path))
    found = {_room(name) for name in _imports(path) if name.split(".")[0] == "app"} - {room}
    if room in TOP:
        above = {
            "app.routes": {"app.main", "app.cli"},
            "app.main": {"app.cli", "app.supervisor"},
        }.get(room, set())
        assert not found & above
    else:
        assert room in ALLOWED, f"say in ALLOWED what {room} may import"
        assert found <= ALLOWED[room]


def test_routes_do_not_import_each_other() -> None:
    routes = [path for path in _files("app/routes") if path.name != "__init__.py"]
    shared = {f"app.routes.{name}" for name in ("request_body", "posted", "picture_size")}
    resources = {_module(path) for path in routes} - shared
    for path in routes:
        assert not resources & set(_imports(path)), path


def test_rules_name_only_modules_that_exist() -> None:
    assert all(_is_module(name) for name in [*ALLOWED, *TOP, *TRAINING_MAY_IMPORT])


def test_onnxruntime_is_imported_where_it_serves_and_where_it_quantises() -> None:
    found = [
        _module(path)
        for path in _files("app", "training", "tests", "deploy")
        if _named(path, "onnxruntime")
    ]
    assert found == ["app.backends.onnx_cpu", "training.quantize"]


def test_torch_is_imported_in_one_place_of_the_service() -> None:
    found = [_module(path) for path in _files("app") if _named(path, "torch")]
    assert found == ["app.backends.torch_cuda"]


def test_service_never_imports_training() -> None:
    assert not [path for path in _files("app") if _named(path, "training")]


def test_errors_and_inner_rooms_do_not_know_the_web_framework() -> None:
    inner = ("errors", "contract", "settings", "images", "batcher", "store", "drawing", "metrics")
    paths = [ROOT / "app" / f"{name}.py" for name in inner] + _files("app/backends")
    assert not [p for p in paths if _named(p, "fastapi") or _named(p, "starlette")]


def test_the_test_split_is_read_in_one_place() -> None:
    readers = [
        path for path in _files("training") + _files("bench") if ".load_test()" in path.read_text()
    ]
    assert [_module(path) for path in readers] == ["training.evaluate"]


def test_training_uses_only_what_proves_and_draws_of_the_service() -> None:
    # Export proves what the server will run by running the server's own backends, and draws
    # with the server's own drawing.
    for path in _files("training"):
        for name in _imports(path):
            if name.split(".")[0] == "app":
                assert name.startswith(TRAINING_MAY_IMPORT), f"{path} imports {name}"


@pytest.mark.parametrize("module", ["app.main", "app.cli"])
def test_service_starts_without_torch_and_training(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'torch', 'training', 'torchvision', 'onnx', 'matplotlib'}))\n"
        "print(sorted(roots & {'onnxruntime'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


@pytest.mark.parametrize("path", _files("app", "training"), ids=_module)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_nothing_is_called_utils_or_helpers() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in _files("app", "training", "tests") if path.name in vague]
