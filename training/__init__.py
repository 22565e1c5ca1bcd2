"""Offline training, evaluation and export."""

from importlib.metadata import version


def main() -> None:
    """Run `convscope-train`; a missing package and an interrupted import have no traceback."""
    try:
        from training.cli import main as run
    except ModuleNotFoundError as exc:
        raise SystemExit(
            f"convscope-train: {exc.name} is not installed; all packages for training are, after "
            "`pip install '.[train]'` in a checkout, or `pip install "
            f"'convscope-{version('convscope')}-py3-none-any.whl[train]'` beside the wheel"
        ) from exc
    except KeyboardInterrupt:
        raise SystemExit("Aborted!") from None
    run()
