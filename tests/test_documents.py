"""The documents: their links lead somewhere, and the index names them all."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy" / "helm" / "convscope" / "README.md",
]

document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def _prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """Return the names by which GitHub links to headings."""
    titles = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@document
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _prose(document))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_index_names_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("package", ["app", "training"])
def test_architecture_names_every_module(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split(f"### `{package}`, ")[1].split("\n### ")[0]
    named = set(re.findall(r"`(?:\w+/)*(\w+)`", section))
    for path in (ROOT / package).glob("*/**/*.py"):
        is_one_of_a_kind = path.parent.name in {"routes", "architectures"}
        assert path.stem in named or path.stem == "__init__" or is_one_of_a_kind, path


def test_architecture_has_the_order_that_the_contract_enforces() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = text.split("## Direction of imports")[1].split("```")[1].strip().splitlines()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (
        contract["layers"]
        for contract in settings["contracts"]
        if contract.get("containers") == ["app"]
    )
    assert shown == [layer.replace(" | ", ", ") for layer in layers]


@document
def test_paths_of_code_exist(document: Path) -> None:
    examples = {"training/architectures/tiny_cnn.py", "app/api/routes/layers.py"}
    examples.add("tests/app/api/test_layers.py")
    paths = re.findall(r"`((?:\w+/)+\w+\.(?:py|c|toml|yml))`", _prose(document))
    for path in set(paths) - examples:
        bases = (ROOT, ROOT / "app", ROOT / "training")
        assert any((base / path).exists() for base in bases), path


GONE = {"app.contract", "app.backends", "app.drawing", "training.train"}
"""Modules that the changelog calls by their former names."""


@document
def test_dotted_names_of_code_exist(document: Path) -> None:
    names = set(re.findall(r"(?<![\w./])(?:app|training)(?:\.\w+)+", document.read_text()))
    for name in names - {"training.md"} - (GONE if document.name == "CHANGELOG.md" else set()):
        assert _names_code(name), name


def _names_code(name: str) -> bool:
    """Tell whether a dotted name is a module or a name in one, such as `app.main.create_app`."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module = path.parent if path.parent.is_dir() else path.parent.with_suffix(".py")
    source = module / "__init__.py" if module.is_dir() else module
    return source.exists() and re.search(rf"\b{path.name}\b", source.read_text()) is not None
