"""The compared servers: the command, the request format and the answer format of each."""

import base64
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.artifact.manifest import Precision
from bench import ARTIFACT, BUILD, HERE, MODEL, ROOT
from bench.harness.environments import python_of
from bench.harness.payloads import USUAL, Payload
from bench.harness.processes import free_port
from bench.harness.requests import Request, form, media_type

CORES = os.cpu_count() or 1

CONNECTIONS = (1, 8, 32, 128)
"""Numbers of connections of the closed loop, for the raw PNG."""

OPEN_LOOP_SHARES = (0.25, 0.5, 0.75)
"""Rates of the open loop, as parts of the closed loop's best in the same round."""

ACCESS_LOGS = "Access logs are off everywhere; *log on* is this service as it comes, with its log."


@dataclass(frozen=True)
class Served:
    """A model, as `name/version`, and the precision of its graph."""

    model: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.model} in {self.precision}"

    @property
    def directory(self) -> Path:
        """The model's artifact."""
        return ROOT / "models_store" / self.model


EXERCISE = Served(MODEL, "float32")
FAST = Served("fast/4", "int8")


@dataclass(frozen=True)
class Answer:
    """A server's answer to one image; probabilities in the order of the model's classes."""

    label: str
    probabilities: Sequence[float]


@dataclass(frozen=True)
class Server:
    """One server in one configuration.

    Attributes:
        name: name in the results.
        title: name in the report.
        tuning: its configuration, with reasons.
        command: returns program and arguments for a port.
        environment: variables that are added to the benchmark's own.
        directory: working directory.
        wrap: returns the request for image files of a payload, or None if it takes no such files.
        read: returns the answers in a response's JSON.
        serves: the model that it answers with.
        closed: numbers of connections to measure, by payload; empty means the payload's own number.
        open_shares: rates of the open loop, as parts of the closed loop's.
        peer: name of its directory below `bench/serving/peers` and of its virtual environment.
        start_seconds: most seconds until its first answer.
    """

    name: str
    title: str
    tuning: str
    command: Callable[[int], list[str]]
    wrap: Callable[[Payload, Sequence[bytes]], Request | None]
    read: Callable[[bytes], list[Answer]]
    serves: Served = EXERCISE
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = BUILD
    closed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    open_shares: Sequence[float] = ()
    peer: str | None = None
    start_seconds: float = 60


def _raw(data: bytes, path: str = "/predict") -> Request:
    return Request(path, data, media_type(data))


def _json(path: str, content: object) -> Request:
    return Request(path, json.dumps(content).encode(), "application/json")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _ours(payload: Payload, files: Sequence[bytes]) -> Request:
    if payload.body == "json":
        return _json("/predict", {"images": [_base64(data) for data in files]})
    return form("file", files) if payload.body == "form" else _raw(files[0])


def _litserve(payload: Payload, files: Sequence[bytes]) -> Request | None:
    if payload.body != "file":
        return None
    return _json("/predict", {"image_data": _base64(files[0])})


def _bentoml(payload: Payload, files: Sequence[bytes]) -> Request | None:
    return None if payload.body == "json" else form("images", files)


def _ray(payload: Payload, files: Sequence[bytes]) -> Request | None:
    return _raw(files[0]) if payload.body == "file" else None


def _tutorial(payload: Payload, files: Sequence[bytes]) -> Request | None:
    if payload.body == "json" or payload.images > 1:
        return None
    return form("file", files)


def _mlserver(payload: Payload, files: Sequence[bytes]) -> Request | None:
    if payload.body != "file" and payload.images == 1:
        return None
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(files), 1],
        "parameters": {"content_type": "base64"},
        "data": [_base64(data) for data in files],
    }
    return _json("/v2/models/classifier/infer", {"inputs": [tensor]})


def _answer(item: Mapping[str, object]) -> Answer:
    probabilities = item["probabilities"]
    if not isinstance(probabilities, dict):
        raise TypeError(f"probabilities are {type(probabilities).__name__}, not an object")
    classes = json.loads((ARTIFACT / "manifest.json").read_text())["classes"]
    return Answer(str(item["label"]), [float(probabilities[name]) for name in classes])


def _read_ours(body: bytes) -> list[Answer]:
    return [_answer(item) for item in json.loads(body)["predictions"]]


def _read_peer(body: bytes) -> list[Answer]:
    content = json.loads(body)
    return [_answer(item) for item in (content if isinstance(content, list) else [content])]


def _read_mlserver(body: bytes) -> list[Answer]:
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    values = outputs["probabilities"]["data"]
    width = outputs["probabilities"]["shape"][1]
    rows = [values[at : at + width] for at in range(0, len(values), width)]
    return [Answer(*pair) for pair in zip(outputs["label"]["data"], rows, strict=True)]


def _convscope(workers: int) -> Callable[[int], list[str]]:
    program = str(Path(sys.executable).parent / "convscope")
    return lambda port: [
        *(program, "serve", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", str(workers)),
    ]


def _service(name: str) -> Callable[[int], list[str]]:
    return lambda port: [str(python_of(name)), "service.py", str(port)]


def _module(name: str, *arguments: str) -> Callable[[int], list[str]]:
    return lambda port: [str(python_of(name)), "-m", *arguments, "--port", str(port)]


def _mlserver_command(port: int) -> list[str]:
    """Write MLServer's two files of settings, which hold its ports and its tuning."""
    place = BUILD / "mlserver"
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_endpoint": None,
        "debug": False,
        "parallel_workers": 0,
        "gzip_enabled": False,
    }
    model = {
        "name": "classifier",
        "implementation": "service.Classifier",
        "max_batch_size": 16,
        "max_batch_time": 0.002,
    }
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(json.dumps(model))
    return [str(python_of("mlserver").parent / "mlserver"), "start", str(place)]


def _serving(served: Served) -> dict[str, str]:
    return {
        "CONVSCOPE_MODELS": served.model,
        "CONVSCOPE_DEFAULT_MODEL": served.model,
        "CONVSCOPE_PRECISION": served.precision,
    }


_QUIET = {"CONVSCOPE_LOG_LEVEL": "warning"}
_PEER_ENVIRONMENT = {"BENCH_ARTIFACT": str(ARTIFACT)}
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_ALL_CELLS: Mapping[str, Sequence[int]] = {
    "png": CONNECTIONS,
    **dict.fromkeys(("jpeg", "form", "json", "form64", "photo"), ()),
}

OURS = (
    Server(
        name="ours",
        title=f"Convscope, {CORES} workers",
        tuning="Defaults but for the model, which is the only one; "
        f"one worker a core (--workers {CORES}), CONVSCOPE_LOG_LEVEL=warning.",
        command=_convscope(CORES),
        wrap=_ours,
        read=_read_ours,
        environment={**_serving(EXERCISE), **_QUIET},
        closed=_ALL_CELLS,
        open_shares=OPEN_LOOP_SHARES,
    ),
    Server(
        name="ours-1",
        title="Convscope, 1 worker",
        tuning="Defaults but for the model, which is the only one; "
        "one worker, CONVSCOPE_LOG_LEVEL=warning.",
        command=_convscope(1),
        wrap=_ours,
        read=_read_ours,
        environment={**_serving(EXERCISE), **_QUIET},
        closed={"png": CONNECTIONS, "form64": (1, 2, 4)},
    ),
    Server(
        name="ours-log",
        title=f"Convscope, {CORES} workers, log on",
        tuning=f"As with {CORES} workers, but the log at its default level: "
        "a line of JSON for each request.",
        command=_convscope(CORES),
        wrap=_ours,
        read=_read_ours,
        environment=_serving(EXERCISE),
        closed={"png": (USUAL,)},
    ),
    Server(
        name="ours-int8",
        title=f"Convscope, {CORES} workers, {FAST}",
        tuning=f"As with {CORES} workers, but another model, CONVSCOPE_PRECISION={FAST.precision}.",
        command=_convscope(CORES),
        wrap=_ours,
        read=_read_ours,
        serves=FAST,
        environment={**_serving(FAST), **_QUIET},
        closed={"png": (USUAL,)},
    ),
)

PEERS = (
    Server(
        name="litserve",
        title="LitServe",
        tuning=(
            f"Base64 in JSON as in its guide (forms were slower); max_batch_size=16, "
            f"batch_timeout=2 ms; workers_per_device={CORES} and as many API servers; "
            "fast_queue=True; uvloop and httptools; onnxruntime with one thread a worker."
        ),
        command=_service("litserve"),
        wrap=_litserve,
        read=_read_peer,
        environment=_PEER_ENVIRONMENT,
        directory=HERE / "serving" / "peers" / "litserve",
        closed=_ALL_CELLS,
        peer="litserve",
    ),
    Server(
        name="bentoml",
        title="BentoML",
        tuning=(
            f"workers={CORES}; a batchable endpoint that takes forms (faster than the image as the "
            "raw body, which BentoML cannot batch); metrics, access log and tracking off; uvloop "
            "and httptools; onnxruntime with one thread a worker."
        ),
        command=_module("bentoml", "bentoml", "serve", "service:Classifier"),
        wrap=_bentoml,
        read=_read_peer,
        environment={**_PEER_ENVIRONMENT, "BENTOML_DO_NOT_TRACK": "True"},
        directory=HERE / "serving" / "peers" / "bentoml",
        closed=_ALL_CELLS,
        peer="bentoml",
    ),
    Server(
        name="mlserver",
        title="MLServer",
        tuning=(
            "Custom runtime; image files as BYTES in base64 (a JSON tensor of numbers was "
            "slower); adaptive batching, 16 images or 2 ms; debug, metrics and gzip off; one "
            "process: its parallel workers do not start with today's uvloop, and with uvloop 0.21 "
            "two of them were slower than none."
        ),
        command=_mlserver_command,
        wrap=_mlserver,
        read=_read_mlserver,
        environment={
            **_PEER_ENVIRONMENT,
            "PYTHONPATH": str(HERE / "serving" / "peers" / "mlserver"),
        },
        directory=BUILD / "mlserver",
        closed=_ALL_CELLS,
        peer="mlserver",
    ),
    Server(
        name="ray",
        title="Ray Serve",
        tuning=(
            f"The image as the raw body; num_replicas={CORES}; @serve.batch with 16 images or 2 "
            "ms; max_ongoing_requests=128; RAY_SERVE_THROUGHPUT_OPTIMIZED=1; access log, dashboard "
            "and usage statistics off; onnxruntime with one thread a replica."
        ),
        command=_service("ray"),
        wrap=_ray,
        read=_read_peer,
        environment={**_PEER_ENVIRONMENT, **_RAY},
        directory=HERE / "serving" / "peers" / "ray",
        closed=_ALL_CELLS,
        peer="ray",
        start_seconds=120,
    ),
    Server(
        name="tutorial",
        title="FastAPI + TorchScript",
        tuning=(
            f"A sync endpoint with UploadFile, {CORES} uvicorn workers with uvloop and httptools, "
            "access log off, torch with one thread a worker."
        ),
        command=_module(
            "tutorial", "uvicorn", "service:app", "--workers", str(CORES), "--no-access-log"
        ),
        wrap=_tutorial,
        read=_read_peer,
        environment=_PEER_ENVIRONMENT,
        directory=HERE / "serving" / "peers" / "tutorial",
        closed=_ALL_CELLS,
        peer="tutorial",
    ),
)

SERVERS = {server.name: server for server in (*OURS, *PEERS)}
