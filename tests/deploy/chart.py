"""The Helm chart, rendered by the real Helm."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import ROOT

CHART = ROOT / "deploy" / "helm" / "convscope"
HELM = shutil.which("helm")
VALUES = sorted((ROOT / "tests" / "deploy" / "values").glob("*.yaml"))
needs_helm = pytest.mark.skipif(HELM is None, reason="there is no helm on the path")

Manifest = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HELM), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@functools.cache
def _template(*arguments: str | Path) -> str:
    done = helm("template", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(
    *values: Path, release: str = "cats", chart: Path = CHART, **changes: str
) -> dict[str, Manifest]:
    """Return a release's manifests by kind, of which there is one each.

    Args:
        values: files with values.
        release: name of the release.
        chart: folder of the chart.
        changes: single values; two underscores stand for a dot.
    """
    files = [f"--values={path}" for path in values]
    single = [f"--set={name.replace('__', '.')}={value}" for name, value in changes.items()]
    text = _template(release, chart, "--namespace=vision", *files, *single)
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    assert len(by_kind) == len(manifests)
    return by_kind


def pod_of(manifests: dict[str, Manifest]) -> Manifest:
    """Return the pod's specification, of a Deployment or an InferenceService."""
    if "Deployment" in manifests:
        return dict(manifests["Deployment"]["spec"]["template"]["spec"])
    return dict(manifests["InferenceService"]["spec"]["predictor"])


def podman_arguments(pod: Manifest) -> list[str]:
    """Return the arguments with which `podman run` gives its container what the pod's has."""
    [container] = pod["containers"]
    user, limits = pod["securityContext"], container["resources"]["limits"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    return [
        f"--user={user['runAsUser']}:{user['runAsGroup']}",
        "--read-only",
        "--read-only-tmpfs=false",
        "--security-opt=no-new-privileges",
        *(f"--cap-drop={name}" for name in container["securityContext"]["capabilities"]["drop"]),
        f"--cpus={limits['cpu']}",
        f"--memory={limits['memory'].removesuffix('i')}",
        *(f"--tmpfs={mount['mountPath']}:mode=1777" for mount in container["volumeMounts"]),
        *(f"--env={variable['name']}={variable['value']}" for variable in container["env"]),
    ]
