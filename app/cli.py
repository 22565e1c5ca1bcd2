"""The commands `convscope serve`, `predict` and `models`."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import click

# NumPy's BLAS would start threads that nothing uses, and a process with threads must not fork.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from app.api.queries import VERSION_HELP
from app.api.schemas import ModelVersion, Predictions
from app.artifact.store import Store, read_store
from app.artifact.tensors import Images, Outputs
from app.commands import OneLineErrors
from app.errors import ConvscopeError, ImageError
from app.images import RgbImage
from app.images.decode import decode
from app.inference.backends import batch_limit, open_backend
from app.machine import can_fork, usable_cpus
from app.server.run_directory import run_directory
from app.settings import Settings, read_settings
from app.tasks.classification import Interpreter
from app.telemetry import logs

BACKLOG = 2048
SHOWN_CLASSES = 5
"""The classes that `predict` prints of an image by default; JSON holds all of them."""


@click.group(cls=OneLineErrors, errors=ConvscopeError)
@click.version_option(package_name="convscope")
def main() -> None:
    """Serve image classifiers, or classify files. CONVSCOPE_* variables hold the settings."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Number of worker processes. Default: one for each available processor.",
)
@click.option(
    "--root-path",
    help="Path prefix at which a proxy publishes the service.  [default: $CONVSCOPE_ROOT_PATH]",
)
def serve(host: str, port: int, workers: int | None, root_path: str | None) -> None:
    """Serve the models over HTTP."""
    if workers and workers > 1 and not can_fork():
        raise click.UsageError(f"--workers {workers}: this platform cannot fork; it has one worker")
    settings = read_settings(root_path=root_path)
    logs.configure(settings.log_format, settings.log_level)
    store = _read_store(settings)
    with closing(_listen(host, port)) as listener, run_directory(listener.getsockname()[:2]):
        import app.inference.backends.onnx_cpu  # noqa: F401 - before the workers fork
        from app.main import open_application

        def greet() -> None:
            _greet(host, port, store, settings)

        opener = partial(open_application, settings)
        if can_fork():
            from app.server.supervisor import Supervisor

            Supervisor(settings, listener, workers or usable_cpus(), opener, greet).run()
        else:
            from app.server.worker import serve_alone

            serve_alone(settings, listener, opener, greet)


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--model", help="The model's name. Default: the default model.")
@click.option("--version", help=VERSION_HELP)
@click.option("--top-k", type=click.IntRange(1), help="How many classes to show.")
@click.option("--json", "as_json", is_flag=True, help="Print what POST /predict answers.")
def predict(
    files: Sequence[str],
    model: str | None,
    version: str | None,
    top_k: int | None,
    *,
    as_json: bool,
) -> None:
    """Classify image FILES ("-" is standard input) without a server."""
    settings = read_settings()
    artifact = _read_store(settings).find(model, version)
    if top_k is None and not as_json:
        top_k = min(SHOWN_CLASSES, len(artifact.manifest.classes))
    interpreter = Interpreter(artifact, settings.precision, top_k=top_k)
    backend = open_backend(artifact, settings.backend, settings.threads, settings.precision)
    names, images = _decode_files(files, artifact.manifest.image_size, settings)
    if names:
        size = batch_limit(artifact, settings.backend, settings.max_batch)
        outputs = Outputs.in_batches(backend.predict, images, size)
        answer = interpreter.render(outputs, images, names)
        _show(Predictions.model_validate_json(answer), as_json=as_json)
    if len(names) < len(files):
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print what GET /models answers.")
def models(*, as_json: bool) -> None:
    """List the models that would be served."""
    store = _read_store(read_settings())
    rows = {
        item.ref: ModelVersion.of(item.manifest, default=item is store.default) for item in store
    }
    if as_json:
        click.echo(
            json.dumps({"models": [row.model_dump(mode="json") for row in rows.values()]}, indent=2)
        )
        return
    lines = [("MODEL", "ARCHITECTURE", "PARAMETERS", "TEST ACCURACY", "")]
    for ref, row in rows.items():
        default = "default" if row.default else ""
        figures = f"{row.parameters:,}", f"{row.test_accuracy:.2%}", default
        lines.append((ref, row.architecture, *figures))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _read_store(settings: Settings) -> Store:
    return read_store(settings.store, settings.models, settings.default_model)


def _listen(host: str, port: int) -> socket.socket:
    """Listen before a model is loaded, so that a taken address is reported at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.setblocking(False)
    return listener


def _greet(host: str, port: int, store: Store, settings: Settings) -> None:
    """Print a first request to try. It goes to stdout, since the log is on stderr."""
    if settings.log_format == "json":
        return
    from app.api.openapi import EXAMPLE_BASE64

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - an address to connect to
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(item.ref for item in store)
    click.echo(
        f"\nServing {names} on {url}; see {url}/docs. Try:\n\n"
        f"curl {url}/predict -H 'Content-Type: application/json' "
        f'-d \'{{"images": ["{EXAMPLE_BASE64}"]}}\'\n'
    )


def _decode_files(
    files: Sequence[str], size: tuple[int, int], settings: Settings
) -> tuple[list[str], Images]:
    """Decode files; print a line on stderr for each one that cannot be read or decoded."""
    names: list[str] = []
    images: list[RgbImage] = []
    for name in files:
        try:
            data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            images.append(
                decode(
                    data,
                    size,
                    settings.max_pixels,
                    max_pixels_whole=settings.max_pixels_whole,
                )
            )
            names.append(name)
        except OSError as exc:
            click.echo(f"{name}: {exc.strerror or exc}", err=True)
        except ImageError as exc:
            click.echo(f"{name}: {exc}", err=True)
    return names, np.array(images)


def _show(answer: Predictions, *, as_json: bool) -> None:
    if as_json:
        click.echo(answer.model_dump_json(indent=2, exclude_none=True))
        return
    for prediction in answer.predictions:
        likely = prediction.probabilities.items()
        classes = ", ".join(f"{label} {value:.1%}" for label, value in likely)
        click.echo(f"{prediction.filename}: {classes}")
