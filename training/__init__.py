"""Offline training, evaluation and export."""


def main() -> None:
    """Run `convscope-train`; report a missing package in one line."""
    try:
        from training.cli import main as run
    except ModuleNotFoundError as exc:
        raise SystemExit(
            f"convscope-train: {exc.name} is not installed; `pip install '.[train]'` installs all "
            "packages for training, and so does `make test`"
        ) from exc
    run()
