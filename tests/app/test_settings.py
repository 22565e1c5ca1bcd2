import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.artifact.store import PREFERRED_MODEL
from app.errors import SettingsError
from app.settings import PREFIX, Settings, check_names, read_settings

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "configuration.md"


def _documented() -> dict[str, str]:
    rows = re.findall(
        rf"^\| `{PREFIX}(\w+)` \| (`.*?`|all|none) \| \S", DOCUMENT.read_text(), re.MULTILINE
    )
    return {name.lower(): default.strip("`") for name, default in rows}


def test_every_setting_is_documented_and_nothing_else_is() -> None:
    assert _documented().keys() == Settings.model_fields.keys()


def test_documented_defaults_are_the_defaults() -> None:
    documented = _documented()
    assert documented.pop("store") == "models_store"
    assert documented.pop("models") == "all"
    assert documented.pop("root_path") == documented.pop("cors_origins") == "none"
    assert documented.pop("default_model") == PREFERRED_MODEL
    for name, default in documented.items():
        value = Settings.model_fields[name].default
        assert default == (f"{value:g}" if isinstance(value, float) else str(value)), name


def test_no_setting_takes_a_name_that_kubernetes_sets() -> None:
    taken = re.compile(r"(service_|port)")
    assert not [name for name in Settings.model_fields if taken.match(name)]


@pytest.mark.parametrize(
    ("variable", "value", "limit"),
    [
        ("THREADS", "0", "greater than or equal to 1"),
        ("THREADS", "many", "valid integer"),
        ("BACKEND", "tpu", "'onnx-cpu', 'torch-cpu' or 'torch-cuda'"),
        ("REQUEST_TIMEOUT_SECONDS", "-1", "greater than 0"),
        ("DEFAULT_MODEL", "/2", "`name/version`"),
        ("MODELS", "fc,simple-cnn/new", "`name/version`"),
        ("LOG_FORMAT", "xml", "'auto', 'text' or 'json'"),
    ],
)
def test_bad_value_is_one_line_with_variable_value_and_limit(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, limit: str
) -> None:
    monkeypatch.setenv(PREFIX + variable, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"{PREFIX}{variable}=")
    assert value.split(",")[-1] in message
    assert limit in message
    assert "\n" not in message


def test_unknown_variable_is_one_line_with_the_name_that_may_be_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVSCOPE_MAX_REQUEST", "5")
    message = (
        "CONVSCOPE_MAX_REQUEST: there is no such setting; did you mean CONVSCOPE_MAX_REQUESTS?"
    )
    with pytest.raises(SettingsError, match=re.escape(message)):
        read_settings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CONVSCOPE_DATADIR", "did you mean CONVSCOPE_DATA_DIR?"),
        ("CONVSCOPE_LOGLEVEL", "did you mean CONVSCOPE_LOG_LEVEL?"),
        ("CONVSCOPE_TIMEOUT", "did you mean CONVSCOPE_HEAD_TIMEOUT_SECONDS?"),
        ("convscope_thread", "did you mean CONVSCOPE_THREADS?"),
        ("CONVSCOPE_WORKERS", "did you mean `convscope serve --workers`?"),
        ("CONVSCOPE_PORT", "did you mean `convscope serve --port`?"),
        ("CONVSCOPE_WORKER", "did you mean `convscope serve --workers`?"),
        ("CONVSCOPE_NUM_WORKERS", "did you mean `convscope serve --workers`?"),
        ("CONVSCOPE_STORES", "did you mean CONVSCOPE_STORE?"),
        ("CONVSCOPE_FORWARDED_ALLOW_IPS", "did you mean FORWARDED_ALLOW_IPS?"),
    ],
)
def test_unknown_variable_names_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "8080")
    message = re.escape(f"{variable}: there is no such setting; {meant}")
    with pytest.raises(SettingsError, match=f"^{message}$"):
        read_settings()


def test_port_that_is_no_service_link_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_METRICS_PORT", "9000")
    with pytest.raises(SettingsError, match=r"^CONVSCOPE_METRICS_PORT: .* setting$"):
        read_settings()


@pytest.mark.parametrize(
    "assignment",
    [
        "CONVSCOPE_SERVICE_HOST=10.96.0.7",  # of Kubernetes, for a Service `convscope`
        "CONVSCOPE_SERVICE_PORT=8000",
        "CONVSCOPE_PORT=tcp://10.96.0.7:8000",
        "CONVSCOPE_PORT_8000_TCP=tcp://10.96.0.7:8000",
        "CONVSCOPE_PORT_8000_TCP_ADDR=10.96.0.7",
        "CONVSCOPE_WEB_SERVICE_PORT_HTTP=8000",  # for a Service `convscope-web`
        "CONVSCOPE_WEB_PORT=tcp://10.96.0.8:8000",
        "CONVSCOPES_THREADS=2",
    ],
)
def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch, assignment: str) -> None:
    monkeypatch.setenv(*assignment.split("=", 1))
    read_settings()


def test_every_variable_that_the_project_reads_is_let_be() -> None:
    sources = [
        path
        for folder in ("app", "training", "bench", "tests/support", "deploy", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {"", ".py", ".yaml", ".yml"} and path.is_file()
    ]
    sources += [ROOT / name for name in ("Dockerfile", "compose.yaml", "Makefile", "README.md")]
    sources += [*(ROOT / "docs").glob("*.md"), *(ROOT / "tests").glob("*.py")]
    names = {
        name for path in sources for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text())
    }
    assert {"CONVSCOPE_STORE", "CONVSCOPE_KERNELS", "CONVSCOPE_CHROMIUM"} <= names
    check_names(dict.fromkeys(names, "tcp://10.96.0.7:8000"))


def test_queue_that_is_smaller_than_a_full_request_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVSCOPE_QUEUE_CAPACITY", "8")
    with pytest.raises(SettingsError, match=r"CAPACITY=8: .* CONVSCOPE_MAX_IMAGES=64"):
        read_settings()


def test_models_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_MODELS", "fc, simple-cnn/3,")
    assert read_settings().models == ("fc", "simple-cnn/3")


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_THREADS", "")
    assert read_settings().threads == 1


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.threads = 2


def test_store_of_the_working_directory_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().store == DOCUMENT.parent.parent / "models_store"
    (tmp_path / "models_store").mkdir()
    assert Settings().store == Path("models_store")
