"""MLServer: a custom runtime, as in its guide "Custom Inference Runtimes".

Run in its own virtual environment: `mlserver start DIRECTORY`; `bench.serving.servers` makes the
directory and its settings. The input is a tensor of BYTES `[N,1]` with image files in base64, which
adaptive batching joins. (A tensor of numbers, decoded by the client, was slower: its JSON is five
times as long.)
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image


class Classifier(MLModel):
    """The graph in an onnxruntime session."""

    async def load(self) -> bool:
        """Load the graph."""
        artifact = Path(os.environ["BENCH_ARTIFACT"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(artifact / "model.onnx"), options)
        self.classes = json.loads((artifact / "manifest.json").read_text())["classes"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with labels `[N,1]` and probabilities `[N,classes]`."""
        files = self.decode(payload.inputs[0], default_codec=Base64Codec)
        images = np.stack([decode(file) for file in files])
        output = self.session.run(["probabilities"], {"image": images})[0]
        labels = [self.classes[row] for row in output.argmax(1)]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                StringCodec.encode_output("label", labels),
                NumpyCodec.encode_output("probabilities", output),
            ],
        )


def decode(file: bytes) -> np.ndarray:
    """Return uint8 `[32,32,3]`."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image if image.size == (32, 32) else image.resize((32, 32)))
