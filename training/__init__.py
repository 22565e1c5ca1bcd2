"""Offline training, evaluation and export."""


def main() -> None:
    """Run `convscope-train`, or say in one line what its install lacks."""
    try:
        from training.cli import main as run
    except ModuleNotFoundError as exc:
        raise SystemExit(
            f"convscope-train: {exc.name} is not installed; `pip install '.[train]'` brings "
            "all that training needs, and so does `make test`"
        ) from exc
    run()
