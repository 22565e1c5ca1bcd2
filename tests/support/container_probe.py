"""Runs inside a container of the service: ends in an error unless it is what the image promises.

Not a test module: `test_container.py` mounts this folder into the container and has this file run
by the image's own Python.
"""

import importlib.util
import io
import os
import traceback
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, features

SERVICE = "http://127.0.0.1:8000"


def main() -> None:
    """Check the process that runs this, then ask the service beside it."""
    check_user()
    check_file_system()
    assert importlib.util.find_spec("torch") is None, "torch is installed"
    assert features.check("fribidi"), "Pillow cannot write from right to left"
    with httpx.Client(base_url=SERVICE, timeout=10, trust_env=False) as client:
        ready = client.get("/health/ready")
        assert ready.status_code == 200, ready.text
        check_prediction(client)
        check_scenes(client)


def check_user() -> None:
    """Neither this process nor the service's first one is root, or may become it."""
    for pid in ("self", "1"):
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert "0" not in status["Uid"].split(), f"process {pid} is root"
        assert int(status["CapEff"], 16) == 0, f"process {pid} has capabilities"
    assert os.getuid() == 10001


def check_file_system() -> None:
    """The root file system is read-only, as the service was started."""
    assert os.statvfs("/").f_flag & os.ST_RDONLY, "the root file system can be written to"


def check_prediction(client: httpx.Client) -> None:
    """A PNG of a real image is answered with the model's classes."""
    with np.load(Path(__file__).with_name("sample.npz"), allow_pickle=False) as sample:
        pixels, classes = sample["test_images"][0], sample["classes"].tolist()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    answer = client.post(
        "/predict",
        params={"top_k": len(classes)},
        content=png.getvalue(),
        headers={"Content-Type": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    [prediction] = answer.json()["predictions"]
    assert sorted(prediction["probabilities"]) == sorted(classes)
    assert abs(sum(prediction["probabilities"].values()) - 1) < 1e-3
    assert prediction["label"] == max(
        prediction["probabilities"], key=prediction["probabilities"].__getitem__
    )
    print(prediction)


def check_scenes(client: httpx.Client) -> None:
    """Boxes and masks are found too: what they need has not been left out of the image."""
    # Dark discs on a bright ground, two of which touch: cells, to both models.
    rows, columns = np.mgrid[:256, :256]
    discs = [(70, 70), (70, 104), (180, 160)]
    is_cell = np.any([np.hypot(rows - y, columns - x) < 18 for y, x in discs], axis=0)
    png = io.BytesIO()
    Image.fromarray(np.where(is_cell, 60, 230).astype(np.uint8)).save(png, format="PNG")
    found = {}
    for path, objects in (("/detect", "detections"), ("/segment", "instances")):
        answer = client.post(path, content=png.getvalue(), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        found[path] = len(answer.json()[objects])
    assert found["/segment"] > 1, found
    print(found)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        # What a health check prints is lost; what the first process prints is the container's log.
        Path("/proc/1/fd/2").write_text(traceback.format_exc())
        raise
