"""`deploy/ray` has what Ray reads, and names what there is."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from app.settings import Settings, check_names
from bench import ROOT
from bench.serving.ray import node_variables

yaml = pytest.importorskip("yaml", reason="PyYAML comes with Ray")

CONFIG = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
[APPLICATION] = CONFIG["applications"]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")


def test_variables_are_settings() -> None:
    check_names(APPLICATION["runtime_env"]["env_vars"])


def test_ray_does_not_end_what_the_service_would_end_itself() -> None:
    longest = Settings.model_fields["max_request_timeout_seconds"].default
    assert CONFIG["http_options"]["request_timeout_s"] == 2 * longest
    assert (
        CONFIG["http_options"]["keep_alive_timeout_s"]
        == Settings.model_fields["keep_alive_seconds"].default
    )


def test_variables_of_nodes_are_documented() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert [name for name in node_variables() if f"`{name}`" not in text] == []


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_serve_reads_the_variables_of_nodes() -> None:
    from ray import serve

    source = (Path(serve.__file__).parent / "_private" / "constants.py").read_text()
    names = [name for name in node_variables() if name.startswith("RAY_SERVE_")]
    assert [name for name in names if f'"{name}"' not in source] == []


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_reads_the_configuration_and_finds_the_deployment() -> None:
    from ray.serve.schema import ServeDeploySchema

    from app.engines import ray as engine

    read = ServeDeploySchema.model_validate(CONFIG)
    [application] = read.applications
    assert application.import_path == f"{engine.__name__}:{engine.build.__name__}"
    assert [given.name for given in application.deployments] == [engine.deployment().name]
