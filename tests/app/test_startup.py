"""A service loads what serving needs, and nothing else."""

import subprocess
import sys

import pytest

from bench import ROOT


@pytest.mark.parametrize("module", ["app.main", "app.cli"])
def test_service_starts_without_torch_and_training(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'torch', 'training', 'torchvision', 'onnx', 'matplotlib'}))\n"
        "print(sorted(roots & {'onnxruntime'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


@pytest.mark.parametrize("command", ["import app; app.run()", "import training; training.main()"])
def test_interrupt_while_modules_are_imported_is_no_traceback(command: str) -> None:
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n" + command
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Aborted!\n")
