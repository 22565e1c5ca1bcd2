"""The inference service."""


def run() -> None:
    """Run `convscope`; an interrupt while its modules are imported ends it without a traceback."""
    try:
        from app.cli import main
    except KeyboardInterrupt:
        raise SystemExit("Aborted!") from None
    main()
