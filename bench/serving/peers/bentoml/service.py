"""BentoML: a service with a batchable endpoint that takes images, as in its guides.

Run in its own virtual environment: `bentoml serve service:Classifier`, with `BENCH_ARTIFACT` in
the environment.
"""

import json
import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime
from PIL.Image import Image

CORES = os.cpu_count() or 1


@bentoml.service(
    workers=CORES,
    traffic={"timeout": 60},
    http={"host": "127.0.0.1"},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """The graph in an onnxruntime session, one per worker."""

    def __init__(self) -> None:
        artifact = Path(os.environ["BENCH_ARTIFACT"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), options)
        self.classes = json.loads((artifact / "manifest.json").read_text())["classes"]

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, images: list[Image]) -> list[dict]:
        """Return the label and all probabilities of each image of one or more requests."""
        pixels = [image.convert("RGB") for image in images]
        pixels = [p if p.size == (32, 32) else p.resize((32, 32)) for p in pixels]
        batch = np.stack([np.asarray(p) for p in pixels])
        output = self.session.run(["probabilities"], {"image": batch})[0]
        return [
            {
                "label": self.classes[int(row.argmax())],
                "probabilities": dict(zip(self.classes, row.tolist(), strict=True)),
            }
            for row in output
        ]
