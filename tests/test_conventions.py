"""Rules about source files that neither the linter nor import-linter can hold."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_the_test_split_is_read_in_one_place() -> None:
    readers = [
        path.relative_to(ROOT)
        for path in _sources("training", "bench")
        if ".load_test()" in path.read_text()
    ]
    assert readers == [Path("training/evaluate.py")]


def test_nothing_is_called_utils_or_helpers() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    found = [path for path in _sources("app", "training", "bench", "tests") if path.name in vague]
    assert not found
