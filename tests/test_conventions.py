"""Rules about source files that neither the linter nor import-linter can hold."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_the_test_split_is_read_in_one_place() -> None:
    def readers(text: str) -> list[str]:
        return [
            path.relative_to(ROOT).as_posix()
            for path in _sources("training", "bench")
            if text in path.read_text()
        ]

    # Scenes to test with are made of test images, and are read where annotated pictures are.
    assert readers(".load_test()") == ["training/data/cifar_scenes.py", "training/evaluate.py"]
    assert readers("source.test") == ["training/evaluate_scenes.py", "training/export/scenes.py"]


def test_nothing_is_called_utils_or_helpers() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    found = [path for path in _sources("app", "training", "bench", "tests") if path.name in vague]
    assert not found
