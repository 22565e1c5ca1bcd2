"""LitServe: the image classifier of its guide "Speed up serving", batched, with ONNX inside.

Run in its own virtual environment: `python service.py PORT`, with `BENCH_ARTIFACT` in the
environment. The image comes as base64 in JSON, as in the guide; forms were slower here.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from PIL import Image

CORES = os.cpu_count() or 1


class Classifier(litserve.LitAPI):
    """Decodes in the worker, then computes the waiting images as one batch."""

    def setup(self, device: str) -> None:  # noqa: ARG002 -- LitServe passes it
        """Load the graph, once per worker."""
        artifact = Path(os.environ["BENCH_ARTIFACT"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = str(artifact / "model.onnx")
        self.session = onnxruntime.InferenceSession(graph, options)
        self.classes = json.loads((artifact / "manifest.json").read_text())["classes"]

    def decode_request(self, request: dict) -> np.ndarray:
        """Return uint8 `[32,32,3]`."""
        image = Image.open(io.BytesIO(base64.b64decode(request["image_data"]))).convert("RGB")
        return np.asarray(image if image.size == (32, 32) else image.resize((32, 32)))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Return uint8 `[N,32,32,3]`."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return probabilities `[N,classes]`."""
        return self.session.run(["probabilities"], {"image": x})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Return one row per request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        """Return the label and all probabilities."""
        probabilities = dict(zip(self.classes, output.tolist(), strict=True))
        return {"label": self.classes[int(output.argmax())], "probabilities": probabilities}


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=16, batch_timeout=0.002),
        accelerator="cpu",
        workers_per_device=CORES,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
