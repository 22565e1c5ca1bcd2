"""The Helm chart: its manifests are valid, its values documented and checked."""

import functools
import gzip
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.server import supervisor
from app.settings import PREFIX, Settings, read_settings
from app.telemetry import metrics
from bench import ROOT
from tests.deploy.chart import CHART, VALUES, Manifest, helm, needs_helm, pod_of, render

KUBERNETES = "1.37"
ALWAYS = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
KINDS = {
    "claim": ALWAYS,
    "gpu": ALWAYS,
    "image-volume-hpa": ALWAYS | {"HorizontalPodAutoscaler"},
    "init-container-keda-monitoring": ALWAYS | {"ScaledObject", "ServiceMonitor", "PrometheusRule"},
    "kserve": ALWAYS - {"Deployment"} | {"InferenceService", "ScaledObject", "ServiceMonitor"},
    "small": ALWAYS,
}
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()

each_file = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
each_set_of_values = pytest.mark.parametrize(
    "values", [[], *([path] for path in VALUES)], ids=["defaults", *(path.stem for path in VALUES)]
)


@functools.cache
def custom_schema(kind: str) -> Any:
    """Return the schema of a custom resource, or None if Kubernetes itself knows the kind."""
    path = ROOT / "tests" / "deploy" / "crds" / f"{kind}.json.gz"
    return strict(json.loads(gzip.decompress(path.read_bytes()))) if path.exists() else None


def strict(schema: Any) -> Any:
    """Return a schema that refuses fields it does not name, which a cluster would drop."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: strict(part) for name, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        parts.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-embedded-resource") or "metadata" in schema.get("properties", {}):
        parts["properties"]["metadata"] = {"type": "object"}  # described for all kinds elsewhere
    return parts


def validate(manifest: Manifest) -> None:
    """Check a manifest as a cluster would.

    Raises:
        jsonschema.ValidationError: a field is wrong or unknown.
    """
    schema = custom_schema(manifest["kind"])
    if schema is None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    else:
        jsonschema.Draft202012Validator(schema).validate(manifest)


@needs_helm
@each_set_of_values
def test_helm_and_kubernetes_accept_the_chart(values: list[Path]) -> None:
    done = helm("lint", "--strict", CHART, *(f"--values={path}" for path in values))
    assert done.returncode == 0, done.stdout
    for manifest in render(*values).values():
        validate(manifest)


@needs_helm
@each_file
def test_values_choose_the_resources(values: Path) -> None:
    assert render(values).keys() == KINDS[values.stem]


@needs_helm
@pytest.mark.parametrize(
    "kind", [*sorted(KINDS["init-container-keda-monitoring"]), "InferenceService"]
)
def test_unknown_field_of_any_manifest_is_found(kind: str) -> None:
    [values] = [path for path in VALUES if path.stem == "init-container-keda-monitoring"]
    kserve = "true" if kind == "InferenceService" else "false"
    manifest = render(values, kserve=kserve)[kind]
    manifest["spec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError) as raised:
        validate(manifest)
    assert "'replica' was unexpected" in raised.value.message


@needs_helm
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("kserv=true", "'kserv' not allowed"),
        ("settings.store=/x", "'store' not allowed"),
        ("settings.max_batch=0", "/settings/max_batch': minimum: got 0, want 1"),
        ("settings.drain_delay=null", "missing property 'drain_delay'"),
        ("resources.limits.cpu=null", "/resources/limits': missing property 'cpu'"),
        ("resources.limits.memory=2GB", "'2GB' does not match"),
        ("image.tag=a/b", "'a/b' does not match"),
        ("replicas=0", "minimum: got 0, want 1"),
        ("models.from=disk", "/models/from': value must be one of"),
        ("models.from=claim", "/models/claim': minLength"),
        ("models.from=volumeImage", "/models/volumeImage': minLength"),
        ("models.from=initContainer", "/models/initContainer/image': minLength"),
        ("autoscaling.minReplicas=11", "maxReplicas is 10; it must be at least"),
        ("autoscaling.by=keda", "/autoscaling/prometheus': '' does not match"),
    ],
)
def test_wrong_value_is_refused_by_name(value: str, message: str) -> None:
    done = helm("template", "cats", CHART, f"--set={value}")
    assert done.returncode != 0
    assert message in done.stderr


def test_schema_refuses_unknown_values_at_each_level() -> None:
    def levels(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert values.keys() <= schema["properties"].keys()
        assert schema["additionalProperties"] is False
        for name, value in values.items():
            if isinstance(value, dict) and "properties" in schema["properties"][name]:
                levels(value, schema["properties"][name])

    levels(DEFAULTS, SCHEMA)


def test_schema_has_the_settings_of_the_service() -> None:
    settings = Settings.model_json_schema()["properties"]
    del settings["store"]  # the chart mounts it
    found = SCHEMA["properties"]["settings"]["properties"]
    assert found.keys() == settings.keys()
    limits = ("enum", "minimum", "maximum", "exclusiveMinimum")
    for name, schema in settings.items():
        for limit in limits:
            assert found[name].get(limit) == schema.get(limit), name


def test_table_documents_each_value_with_its_default() -> None:
    def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
        found = dict[str, str]()
        for name, value in values.items():
            if isinstance(value, dict) and value:
                found |= leaves(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value if value and value is str(value) else json.dumps(value)
        return found

    table = re.findall(
        r"^\| `([\w.]+)` \|(?: `(.+?)`)? \| .+ \|$", (CHART / "README.md").read_text(), re.MULTILINE
    )
    assert dict(table) == {**leaves(DEFAULTS), "settings": ""}
    assert len(table) == len(dict(table))


def test_chart_has_the_version_of_the_service() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == project["version"]


@needs_helm
def test_settings_reach_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    [values] = [path for path in VALUES if path.stem == "small"]
    [container] = pod_of(render(values))["containers"]
    for variable in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = read_settings()
    given = {**DEFAULTS["settings"], **yaml.safe_load(values.read_text())["settings"]}
    given["models"] = (given["models"],)
    assert settings.model_dump(include=set(given)) == given


@needs_helm
@each_set_of_values
def test_pod_is_not_killed_while_it_drains(values: list[Path]) -> None:
    pod = pod_of(render(*values))
    [container] = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    drain, shutdown = env["CONVSCOPE_DRAIN_DELAY"], env["CONVSCOPE_SHUTDOWN_SECONDS"]
    longest = float(drain) + float(shutdown) + supervisor._KILL_AFTER_SECONDS
    assert pod["terminationGracePeriodSeconds"] > longest
    probe = container["readinessProbe"]
    unready = probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"]
    assert float(drain) > unready


@needs_helm
@each_set_of_values
def test_containers_have_no_rights(values: list[Path]) -> None:
    pod = pod_of(render(*values))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"] + pod.get("initContainers", []):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@needs_helm
@each_set_of_values
def test_pod_fits_the_image(values: list[Path]) -> None:
    pod = pod_of(render(*values))
    [container] = pod["containers"]
    [user] = re.findall(r"^USER (\d+):\1$", DOCKERFILE.split("AS service")[1], re.MULTILINE)
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
        int(user),
        int(user),
    )
    [port] = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert container["ports"] == [{"name": "http", "containerPort": int(port)}]
    [store] = re.findall(r"CONVSCOPE_STORE=(\S+)", DOCKERFILE)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts in ({"tmp": "/tmp"}, {"tmp": "/tmp", "models": store})
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}


@needs_helm
@each_set_of_values
def test_all_selectors_find_the_pods(values: list[Path]) -> None:
    manifests = render(*values)
    if "Deployment" in manifests:
        labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert is_in(manifests["Deployment"]["spec"]["selector"]["matchLabels"], labels)
    else:  # KServe gives them to its pods
        labels = manifests["InferenceService"]["metadata"]["labels"]
    assert is_in(manifests["Service"]["spec"]["selector"], labels)
    assert is_in(manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels)
    assert is_in(manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"], labels)
    for constraint in pod_of(manifests)["topologySpreadConstraints"]:
        assert is_in(constraint["labelSelector"]["matchLabels"], labels)
    if monitor := manifests.get("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert is_in(selector, manifests["Service"]["metadata"]["labels"])
        assert not is_in(selector, labels), "it would find KServe's own Service too"


def is_in(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@needs_helm
def test_autoscalers_watch_a_metric_of_the_service() -> None:
    watched = next(iter(metrics.Metrics().queue_images.describe())).name
    hpa = render(autoscaling__by="hpa")["HorizontalPodAutoscaler"]["spec"]
    assert [metric["pods"]["metric"]["name"] for metric in hpa["metrics"]] == [watched]
    keda = render(autoscaling__by="keda", autoscaling__prometheus="http://prometheus")
    [trigger] = keda["ScaledObject"]["spec"]["triggers"]
    labels = '{namespace="vision",service="cats-convscope"}'
    assert f"({watched}{labels}[1m])" in trigger["metadata"]["query"]


@needs_helm
@pytest.mark.parametrize("kserve", ["false", "true"])
def test_autoscaler_decides_alone(kserve: str) -> None:
    manifests = render(autoscaling__by="hpa", kserve=kserve)
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["apiVersion"]) == ("Deployment", "apps/v1")
    if kserve == "false":
        assert target["name"] == manifests["Deployment"]["metadata"]["name"]
        assert "replicas" not in manifests["Deployment"]["spec"]
    else:
        service = manifests["InferenceService"]["metadata"]
        assert target["name"] == f"{service['name']}-predictor"
        assert service["annotations"]["serving.kserve.io/autoscalerClass"] == "external"


@needs_helm
def test_alerts_are_those_of_prometheus() -> None:
    rule = render(monitoring__prometheusRule="true")["PrometheusRule"]
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    assert rule["spec"] == yaml.safe_load(alerts)


@needs_helm
@pytest.mark.parametrize("release", ["0815", "convscope", "a" * 53, "my-convscope-of-cats"])
def test_any_release_has_short_names(release: str) -> None:
    for manifest in render(VALUES[-1], release=release).values():
        validate(manifest)
        name = manifest["metadata"]["name"]
        assert len(f"{name}-predictor") <= 63
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == release


@needs_helm
def test_values_in_the_document_are_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    [block] = re.findall(r"^```yaml\n(# values\.yaml\n.+?)^```", text, re.DOTALL | re.MULTILINE)
    values = tmp_path / "values.yaml"
    values.write_text(block)
    assert render(values).keys() > ALWAYS


@needs_helm
def test_chart_works_within_another_chart(tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: zoo\nversion: 1.0.0\n")
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "convscope").symlink_to(CHART)
    (tmp_path / "values.yaml").write_text("global: {region: eu}\nconvscope: {replicas: 7}\n")
    assert render(chart=tmp_path)["Deployment"]["spec"]["replicas"] == 7
