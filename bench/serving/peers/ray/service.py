"""Ray Serve: a deployment that batches requests, as in its guide "Dynamic Request Batching".

Run in its own virtual environment: `python service.py PORT`, with `BENCH_ARTIFACT` in the
environment. The body of the request is the image file.
"""

import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import ray
from PIL import Image
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

CORES = os.cpu_count() or 1


@serve.deployment(
    num_replicas=CORES,
    max_ongoing_requests=128,
    ray_actor_options={"num_cpus": 1},
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
class Classifier:
    """One replica: decodes each request and computes waiting requests together."""

    def __init__(self) -> None:
        artifact = Path(os.environ["BENCH_ARTIFACT"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), options)
        self.classes = json.loads((artifact / "manifest.json").read_text())["classes"]

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def classify(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return probabilities for each uint8 `[32,32,3]`."""
        return list(self.session.run(["probabilities"], {"image": np.stack(images)})[0])

    async def __call__(self, request: Request) -> dict:
        """Answer with the label and all probabilities."""
        image = Image.open(io.BytesIO(await request.body())).convert("RGB")
        image = image if image.size == (32, 32) else image.resize((32, 32))
        output = await self.classify(np.asarray(image))
        probabilities = dict(zip(self.classes, output.tolist(), strict=True))
        return {"label": self.classes[int(output.argmax())], "probabilities": probabilities}


if __name__ == "__main__":
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        runtime_env={"env_vars": {"BENCH_ARTIFACT": os.environ["BENCH_ARTIFACT"]}},
        logging_level="warning",
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])), logging_config=quiet
    )
    serve.run(Classifier.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
