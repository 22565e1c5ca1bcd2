"""Every setting of the service, read from `CONVSCOPE_*` environment variables.

One frozen `Settings` is read when the process starts and passed down; nothing else in the service
reads `CONVSCOPE_*`. Each field is described in `docs/configuration.md`. Host, port and number
of workers belong to the command line: no field may be called `port` or `service_host`, because
Kubernetes sets `CONVSCOPE_PORT=tcp://...` and `CONVSCOPE_SERVICE_HOST` beside a Service named
`convscope`.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.artifact.manifest import PRECISIONS, BackendName, Precision
from app.errors import SettingsError

PREFIX = "CONVSCOPE_"

_OTHERS = {"DATA_DIR", "KERNELS", "CHROMIUM", "CONTAINER_CHECK", "SCENES_DIR"}  # not the service's
_OPTIONS = {"HOST", "PORT", "WORKERS"}  # of `convscope serve`
_WITHOUT_PREFIX = {"FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR"}  # of libraries
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|(\w+_)?PORT=\w+://.*",
    re.DOTALL,
)
"""Variables that Kubernetes sets for a Service. `PORT=8080` is none: somebody means the option."""
_STORE = "models_store"
_ORIGIN = re.compile(
    r"\*|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
)
_LAST_PORT = 65_535
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # which browsers leave out of an origin
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~-]+)*", re.ASCII)
_ROOT_PATH_LENGTH = 256


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_reference(value: str) -> str:
    name, slash, version = value.partition("/")
    if not name or (slash and not version.isdecimal()):
        raise ValueError(f"{value!r} is neither `name` nor `name/version`")
    return value


def _check_origin(value: str) -> str:
    origin = value.lower()
    found = _ORIGIN.fullmatch(origin)
    if not found or int(found["port"] or 0) > _LAST_PORT:
        raise ValueError(
            f"{value!r} is neither an origin, such as `https://example.org` or "
            "`http://localhost:3000`, nor `*`"
        )
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], ""))


def check_root_path(value: str) -> str:
    """Return a path prefix without the slash at its end.

    Raises:
        ValueError: it does not begin with a slash, or holds more than plain segments, so that a
            browser may read it as another host or path.
    """
    path = value.rstrip("/")
    if len(path) > _ROOT_PATH_LENGTH or not _ROOT_PATH.fullmatch(path):
        raise ValueError(
            "a path prefix is like `/vision`: segments of letters, digits and `-._~`, at most "
            f"{_ROOT_PATH_LENGTH} characters"
        )
    return path


def _default_store() -> Path:
    """Return the store in the working directory, or else the one of the checkout."""
    beside_package = Path(__file__).parent.parent / _STORE
    if not Path(_STORE).is_dir() and beside_package.is_dir():
        return beside_package
    return Path(_STORE)


Reference = Annotated[str, AfterValidator(_check_reference)]
"""A model as `name` (its highest version) or `name/version`."""

Origin = Annotated[str, AfterValidator(_check_origin)]
"""An origin as browsers send it, scheme and host, or `*` for all."""

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """The settings of one process. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    store: Path = Field(default_factory=_default_store)
    models: Annotated[tuple[Reference, ...], NoDecode, BeforeValidator(_split)] = ()
    default_model: Reference | None = None
    backend: BackendName = "onnx-cpu"
    precision: Precision = "float32"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    inference: Literal["auto", "loop", "thread"] = "auto"

    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 32 << 20
    max_held_bytes: Annotated[int, Field(ge=1024, le=1 << 40)] = 256 << 20
    max_images: Annotated[int, Field(ge=1, le=4096)] = 64
    max_pixels: Annotated[int, Field(ge=1024, le=1_000_000_000)] = 40_000_000
    max_pixels_whole: Annotated[int, Field(ge=1024, le=1_000_000_000)] = 12_500_000
    head_timeout_seconds: Seconds = 10.0
    body_timeout_seconds: Seconds = 30.0

    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    max_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    max_wait_ms: Annotated[int, Field(ge=1, le=60_000)] = 40
    queue_capacity: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    request_timeout_seconds: Seconds = 10.0
    max_request_timeout_seconds: Seconds = 30.0

    stall_seconds: Seconds = 2.0
    hang_seconds: Seconds = 40.0
    keep_alive_seconds: Annotated[int, Field(ge=1, le=3600)] = 65
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)] = ()
    root_path: Annotated[str, AfterValidator(check_root_path)] = ""
    drain_delay: Annotated[float, Field(ge=0, le=3600)] = 0.0
    shutdown_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _backend_computes_in_this_precision(self) -> "Settings":
        if self.precision not in PRECISIONS[self.backend]:
            able = " or ".join(
                name for name, found in PRECISIONS.items() if self.precision in found
            )
            raise ValueError(
                f"{PREFIX}PRECISION={self.precision}: needs {PREFIX}BACKEND={able}; "
                f"it is {self.backend}"
            )
        return self

    @model_validator(mode="after")
    def _full_request_fits(self) -> "Settings":
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(
                f"{PREFIX}MAX_HELD_BYTES={self.max_held_bytes}: must be at least "
                f"{PREFIX}MAX_BODY_BYTES={self.max_body_bytes}, or a full body would never fit"
            )
        if self.queue_capacity < self.max_images:
            raise ValueError(
                f"{PREFIX}QUEUE_CAPACITY={self.queue_capacity}: must be at least "
                f"{PREFIX}MAX_IMAGES={self.max_images}, or a full request would never fit"
            )
        return self


def read_settings(**given: str | None) -> Settings:
    """Read the settings from the environment.

    Args:
        given: values that count more than the environment's, unless they are None.

    Raises:
        SettingsError: one line that names the variable, its value and the allowed values.
    """
    check_names(os.environ)
    try:
        options = {name: value for name, value in given.items() if value is not None}
        return Settings(**options)  # type: ignore[arg-type]  # the fields' validators read strings
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        message = error["msg"].removeprefix("Value error, ")
        if not error["loc"]:
            raise SettingsError(message) from exc
        variable = PREFIX + str(error["loc"][0]).upper()
        raise SettingsError(f"{variable}={error['input']}: {message}") from exc


def check_names(environment: Mapping[str, str]) -> None:
    """Refuse a variable that begins like a setting and is none: a typo would go unnoticed.

    Raises:
        SettingsError: one line that names the variable and the nearest one that there is.
    """
    known = {name.upper() for name in Settings.model_fields} | _OTHERS
    for variable, value in environment.items():
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(f"{name}={value}"):
            continue
        meant = ""
        if close := difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.75):
            meant = f"; did you mean `convscope serve --{close[0].lower()}`?"
        elif close := difflib.get_close_matches(name, known | _WITHOUT_PREFIX, n=1, cutoff=0.4):
            prefix = "" if close[0] in _WITHOUT_PREFIX else PREFIX
            meant = f"; did you mean {prefix}{close[0]}?"
        raise SettingsError(f"{variable}: there is no such setting{meant}")
