"""Offline training, evaluation and export."""

from importlib.metadata import version


def main() -> None:
    """Run `convscope-train`; report a missing package in one line."""
    try:
        from training.cli import main as run
    except ModuleNotFoundError as exc:
        raise SystemExit(
            f"convscope-train: {exc.name} is not installed; all packages for training are, after "
            "`pip install '.[train]'` in a checkout, or `pip install "
            f"'convscope-{version('convscope')}-py3-none-any.whl[train]'` beside the wheel"
        ) from exc
    run()
