"""The files of an artifact, and the arrays in them, by name.

Who needs these imports them from `contract`.
"""

from app.artifact.manifest import Precision

MANIFEST = "manifest.json"
ONNX_GRAPH = "model.onnx"
INT8_GRAPH = "model.int8.onnx"
TORCHSCRIPT_GRAPH = "model.ts"
GOLDEN = "golden.npz"
FILTERS = "filters.npz"
EVALUATION = "evaluation.json"
HISTORY = "history.json"
LAYERS = "layers.npz"
RESPONSES = "responses.npz"
EXAMPLES = "examples.npz"

RESPONSES_A_FILTER = 9
SHEET = "{}.sheet"
RESPONSE_IMAGES = "{}.images"
RESPONSE_CORNERS = "{}.corners"
RESPONSE_VALUES = "{}.values"
"""The arrays of `responses.npz`, for each convolution: a WebP picture as bytes, with a row of nine
square parts of test images for each of its first filters; their indices in the test split, int32
`[filters,9]`; the row and column where each starts, int16 `[filters,9,2]`, which may lie outside
the image; and what the filter gives for it, float32 `[filters,9]`."""

EXAMPLE_SHEET = "sheet"
EXAMPLE_COLUMNS = 32
"""`examples.npz` holds `sheet`, a WebP picture as bytes of test images, 32 in a row, and of each
its `index` in the test split, its `true` and `predicted` class, all int32, and its `confidence`,
float32. They are sorted by true class, predicted class and falling confidence."""

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
