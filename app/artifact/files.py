"""The files of an artifact, and the arrays in them, by name."""

from app.artifact.manifest import Precision

MANIFEST = "manifest.json"
ONNX_GRAPH = "model.onnx"
INT8_GRAPH = "model.int8.onnx"
TORCHSCRIPT_GRAPH = "model.ts"
GOLDEN = "golden.npz"
FILTERS = "filters.npz"  # only in older artifacts: others have these weights in the graph alone
EVALUATION = "evaluation.json"
HISTORY = "history.json"
LAYERS = "layers.npz"
RESPONSES = "responses.npz"
EXAMPLES = "examples.npz"

PIXELS = "pixels"
"""What stands for the normalised image where a layer is named."""

LAYER_OUTPUT = "layer.{}"
"""How a layer's output is called in the ONNX graph."""

LAYER_OUTPUTS = "outputs"
CLASSIFIER = "classifier"
BIAS = "{}.bias"
"""The arrays of `layers.npz`: bytes which, appended to the ONNX graph, make every layer's output
one of the graph's; the weights `[classes,channels]` of a last layer that follows global average
pooling; the biases of convolutions."""

GOLDEN_PROBABILITIES: dict[Precision, str] = {
    "float32": "probabilities",
    "int8": "probabilities_int8",
}
"""The arrays of `golden.npz` that a graph must reproduce."""

GOLDEN_SCORES: dict[Precision, str] = {"float32": "ood_scores", "int8": "ood_scores_int8"}
"""Likewise, of graphs that give out-of-distribution scores."""
