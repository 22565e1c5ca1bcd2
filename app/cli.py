"""The commands `convscope serve`, `predict`, `score` and `models`."""

import io
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

# NumPy's BLAS would start threads that nothing uses, and a process with threads must not fork.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from app.api.queries import VERSION_HELP
from app.api.schemas import ModelVersion
from app.artifact.directory import Artifact
from app.artifact.store import Store, read_store
from app.commands import OneLineErrors, printable
from app.errors import ConvscopeError, SettingsError
from app.local import (
    ANSWERS,
    COVERAGE,
    FileReader,
    Options,
    as_csv,
    as_text,
    find_files,
    is_folder,
)
from app.machine import can_fork, usable_cpus
from app.server.run_directory import reachable, run_directory
from app.settings import Settings, read_settings
from app.tasks.detection import DEFAULT_DETECTIONS
from app.tasks.segmentation import DEFAULT_INSTANCES
from app.telemetry import logs

_log = logging.getLogger(__name__)

BACKLOG = 2048

EXIT_STATUS = (
    "Exit status: 0 if every file has an answer; 1 if a file has none, or the model or a setting "
    "is wrong; 2 for wrong usage."
)

ERASE_LINE = "\r\033[K"

MORE_MODELS = (
    "This is the one model of the installation. CONVSCOPE_STORE names a folder of more: the "
    "repository's models_store, or what `convscope-train export` writes."
)


@click.group(cls=OneLineErrors, errors=ConvscopeError)
@click.version_option(package_name="convscope")
def main() -> None:
    """Serve image models, or ask them about files. CONVSCOPE_* variables hold the settings."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Number of worker processes. Default: one for each available processor.",
)
@click.option(
    "--engine",
    default="processes",
    show_default=True,
    type=click.Choice(["processes", "ray"]),
    help="What runs the workers: this command, or Ray Serve on this machine.",
)
@click.option(
    "--root-path",
    help="Path prefix at which a proxy publishes the service.  [default: $CONVSCOPE_ROOT_PATH]",
)
def serve(host: str, port: int, workers: int | None, engine: str, root_path: str | None) -> None:
    """Serve the models over HTTP."""
    if engine == "processes" and workers and workers > 1 and not can_fork():
        raise click.UsageError(f"--workers {workers}: this platform cannot fork; it has one worker")
    settings = read_settings(root_path=root_path)
    logs.configure(settings.log_format, settings.log_level)
    store = _read_store(settings)
    # All workers serve one default model, and the log tells of its choice once.
    default = settings.default_model or store.default.manifest.name
    settings = settings.model_copy(update={"default_model": default})
    if engine == "ray":
        _serve_with_ray(host, port, workers or usable_cpus(), store, settings)
        return
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


def _serve_with_ray(host: str, port: int, replicas: int, store: Store, settings: Settings) -> None:
    _listen(host, port).close()  # an address in use is an error before Ray starts
    try:
        from app.engines.ray import serve_locally
    except ImportError as exc:
        raise SettingsError(f"--engine ray: {exc}; pip install 'convscope[ray]'") from exc
    serve_locally(settings, host, port, replicas, lambda: _greet(host, port, store, settings))


def _check_number(_context: object, _option: object, value: float | None) -> float | None:
    """Refuse `nan`, which click finds in every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


@main.command(epilog=EXIT_STATUS)
@click.argument("files", nargs=-1, required=True)
@click.option("--model", help="The model, as name or name/version. Default: the default model.")
@click.option("--version", help=VERSION_HELP)
@click.option("--top-k", type=click.IntRange(1), help="How many classes to show. For classifiers.")
@click.option(
    "--coverage",
    type=click.FloatRange(0.01, 0.99),
    callback=_check_number,
    help="The probability with which the set of classes holds the true one, for pictures like "
    f"those that the model was trained on. Default: {COVERAGE:g}, if the model has sets. For "
    "classifiers.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    callback=_check_number,
    help="The least score of an object. Default: a detector's own, 0 for a segmenter. For "
    "detectors, and segmenters that tell objects apart. A detector gives at most the "
    f"{DEFAULT_DETECTIONS} best objects of a picture, a segmenter the {DEFAULT_INSTANCES} best.",
)
@click.option(
    "--draw",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for drawings: each picture with its objects, or the areas of classes, as PNG. No "
    "file is overwritten. For detectors and segmenters.",
)
@click.option(
    "--json",
    "to_json",
    is_flag=True,
    help="Print JSON: as POST /predict answers it, or the results of a detector or a segmenter in "
    "COCO's format.",
)
@click.option("--csv", "to_csv", is_flag=True, help="Print CSV, with a header.")
def predict(
    files: Sequence[str],
    model: str | None,
    version: str | None,
    *,
    to_json: bool,
    to_csv: bool,
    **given: Any,
) -> None:
    """Ask a model about FILES: images, folders of them, patterns, "-" for standard input.

    There is no server. Prints a row for each file. Of a classifier: the class, the probability, a
    set of classes that holds the true one with the probability --coverage, for pictures like the
    training images, and a warning if the picture is unlike those. Of a detector: how many objects
    of each class there are, and their scores. Of a segmenter: how many objects of each class there
    are, or, if it tells none apart, the part of the picture that each class covers. --csv and
    --json have a row for each object or class. A file with a fault has a warning in its row, and
    one that cannot be read the reason.
    """
    if to_json and to_csv:
        raise click.UsageError("--json and --csv: only one can be printed")
    if (to_json or to_csv) and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # programs read it, whatever the terminal's is
    settings = read_settings()
    options = Options(**given)
    store = _read_store(settings)
    artifact = store.find(*_name_and_version(model, version))
    _check_options(store, artifact, options)
    task = ANSWERS[artifact.manifest.task]
    answers = task(artifact, settings, options, brief=not (to_json or to_csv))
    reader = FileReader(artifact, settings, answers)
    on_terminal = sys.stderr.isatty() and any(map(is_folder, files))
    count = sum(1 for _ in find_files(files, options.draw)) if on_terminal else None
    if options.draw is not None:
        options.draw.mkdir(parents=True, exist_ok=True)
    rows = reader.rows(find_files(files, options.draw))
    with click.progressbar(
        rows, length=count, show_pos=True, file=sys.stderr, hidden=not on_terminal
    ) as shown:
        if to_json:
            lines = answers.as_json(shown)
        elif to_csv:
            lines = as_csv(shown, answers)
        else:
            lines = as_text(shown, answers)
        for line in lines:
            if on_terminal and sys.stdout.isatty():
                click.echo(ERASE_LINE, nl=False, err=True)
            click.echo(line)
    if reader.failures:
        raise SystemExit(1)


@main.command(epilog=EXIT_STATUS)
@click.argument("sources", nargs=-1, required=True)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The Parquet file of the results. It must not be there yet.",
)
@click.option("--model", help="The model, as name or name/version. Default: the default model.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="The processors of this machine, or a Ray cluster.",
)
def score(sources: Sequence[str], out: Path, model: str | None, engine: str) -> None:
    """Ask a model about all pictures of SOURCES, and write a Parquet file with a row for each.

    SOURCES are folders, images, ZIP, tar and Parquet files, patterns, and URIs such as
    s3://bucket/folder. A picture that cannot be read is a row with the reason. A run that was
    stopped goes on when the same command is given again.
    """
    settings = read_settings()
    artifact = _read_store(settings).find(*_name_and_version(model, None))
    try:
        from app.scoring.run import Job, on_this_machine, run
        from app.scoring.sources import absolute

        if engine == "ray":
            from app.scoring.on_ray import on_ray
    except ModuleNotFoundError as exc:
        extra = "ray" if engine == "ray" else "score"
        raise click.ClickException(
            f"{exc.name} is not installed: pip install 'convscope[{extra}]'"
        ) from exc
    job = Job(artifact.path.absolute(), settings)
    engine_of = on_ray if engine == "ray" else on_this_machine
    found = run([absolute(word) for word in sources], out, job, engine_of, _reporter())
    without = f", {found.failures:,} of them without an answer" if found.failures else ""
    if sys.stderr.isatty():
        click.echo(err=True)
    pictures = "picture" if found.pictures == 1 else "pictures"
    click.echo(f"{printable(out)}: {found.pictures:,} {pictures}{without}")
    if found.failures:
        raise SystemExit(1)


def _reporter() -> Callable[[int, int | None], None]:
    """Return a function that prints progress: on a terminal in place, else a line a minute."""
    on_terminal = sys.stderr.isatty()
    started = time.monotonic()
    told = first = None

    def report(pictures: int, total: int | None) -> None:
        nonlocal told, first
        now = time.monotonic()
        first = pictures if first is None else first
        is_end = pictures == total
        if told is not None and now - told < (0.2 if on_terminal else 60) and not is_end:
            return
        told = now
        of_all = "" if total is None else f" of {total:,}"
        rate = (pictures - first) / max(now - started, 1e-9)
        begin = ERASE_LINE if on_terminal else ""
        click.echo(
            f"{begin}{pictures:,}{of_all} pictures, {rate:,.0f}/s", err=True, nl=not on_terminal
        )

    return report


def _check_options(store: Store, artifact: Artifact, options: Options) -> None:
    """Refuse options that do not fit the model.

    Raises:
        click.UsageError: names an option and the models that have it.
    """

    def takes(item: Artifact, name: str) -> bool:
        return name in ANSWERS[item.manifest.task].takes_with(item)

    task = artifact.manifest.task
    for name in options.given:
        if takes(artifact, name):
            continue
        if name in ANSWERS[task].takes:
            reason = f"is for models that tell objects apart, and {artifact.ref} does not"
        else:
            tasks = [other for other, answers in ANSWERS.items() if name in answers.takes]
            reason = f"is for {' and '.join(tasks)}, and {artifact.ref} for {task}"
        models = [item.ref for item in store if takes(item, name)]
        others = (
            f"--model names another: {', '.join(models)}" if models else "no model here takes it"
        )
        raise click.UsageError(f"--{name.replace('_', '-')} {reason}; {others}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print what GET /models answers.")
def models(*, as_json: bool) -> None:
    """List the models that would be served."""
    settings = read_settings()
    store = _read_store(settings)
    rows = {
        item.ref: ModelVersion.of(item.manifest, default=item in store.defaults.values())
        for item in store
    }
    if as_json:
        click.echo(
            json.dumps(
                {
                    "models": [
                        row.model_dump(mode="json", exclude_none=True) for row in rows.values()
                    ]
                },
                indent=2,
            )
        )
        return
    lines = [("MODEL", "TASK", "ARCHITECTURE", "PARAMETERS", "ON TEST IMAGES", "")]
    for ref, row in rows.items():
        default = "default" if row.default else ""
        size = f"{row.parameters:,}"
        lines.append((ref, row.task, row.architecture, size, _measured(row), default))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    if _is_only_model(store, settings):
        click.echo(MORE_MODELS, err=True)


def _measured(row: ModelVersion) -> str:
    """Return the figure on the test images that the model's task has."""
    if row.test_accuracy is not None:
        return f"{row.test_accuracy:.2%}"
    if row.test_map is not None:
        return f"mAP {row.test_map:.1%}"
    return "" if row.test_iou is None else f"IoU {row.test_iou:.1%}"


def _name_and_version(model: str | None, version: str | None) -> tuple[str, str | None]:
    """Return the name and version that `--model` and `--version` mean together.

    Raises:
        click.UsageError: they name two versions.
    """
    name, _, own = (model or "").partition("/")
    if own and version and own != version:
        raise click.UsageError(f"--model {model} and --version {version} name two versions")
    return name, own or version


def _read_store(settings: Settings) -> Store:
    return read_store(settings.store, settings.models, settings.default_model)


def _is_only_model(store: Store, settings: Settings) -> bool:
    """Whether there is one model although no setting asked for just that."""
    asked_for_less = not settings.model_fields_set.isdisjoint({"store", "models"})
    return not asked_for_less and len([*store]) == 1


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
    """Print where to look and a first request to try, for somebody at a terminal.

    It goes to stdout, since the log is on stderr.
    """
    if _is_only_model(store, settings):
        _log.info(MORE_MODELS)
    if settings.log_format == "json" or not sys.stdout.isatty():
        return
    from app.api.dependencies import ROUTES
    from app.api.openapi import EXAMPLE_BASE64

    host = reachable(host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(item.ref for item in store)
    click.echo(f"\nServing {names}. Open {url} in a browser, see {url}/docs, or try:\n")
    for task, route in ROUTES.items():
        if task in store.defaults:
            click.echo(
                f"curl {url}{route} -H 'Content-Type: application/json' "
                f'-d \'{{"images": ["{EXAMPLE_BASE64}"]}}\'\n'
            )
