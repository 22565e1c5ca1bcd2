"""The names of an artifact's files, of the arrays in `layers.npz` and of layers' outputs.

The arrays of other files are named where they are packed and read: `golden`, `strongest`,
`examples`.
"""

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
"""The name of the normalised image, where the name of a layer is expected."""

LAYER_OUTPUT = "layer.{}"
"""The name of a layer's output in the ONNX graph."""

LAYER_OUTPUTS = "outputs"
CLASSIFIER = "classifier"
BIAS = "{}.bias"
"""The arrays of `layers.npz`. `outputs` are bytes: appended to the ONNX graph, they make the output
of every layer an output of the graph. `classifier` holds the weights `[classes,channels]` of a last
layer that follows global average pooling. `<layer>.bias` holds the biases of a convolution."""
