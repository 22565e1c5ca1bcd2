"""FastAPI with TorchScript as in tutorials: a sync endpoint that takes an `UploadFile`.

Run in its own virtual environment: `uvicorn service:app --workers CORES`, with `BENCH_ARTIFACT` in
the environment.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

ARTIFACT = Path(os.environ["BENCH_ARTIFACT"])

app = FastAPI()
torch.set_num_threads(1)
model = torch.jit.load(str(ARTIFACT / "model.ts"))
model.eval()
classes = json.loads((ARTIFACT / "manifest.json").read_text())["classes"]


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    """Answer with the label and all probabilities."""
    image = Image.open(io.BytesIO(file.file.read())).convert("RGB").resize((32, 32))
    with torch.no_grad():
        _, probabilities, *_ = model(torch.from_numpy(np.array(image)).unsqueeze(0))
    output = probabilities[0]
    return {
        "label": classes[int(output.argmax())],
        "probabilities": dict(zip(classes, output.tolist(), strict=True)),
    }
