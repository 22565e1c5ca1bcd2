"""Measurements behind the figures of the documents: `python -m bench.serving` and its like.

Everything that a run builds (virtual environments of the peers, the open-loop generator, payloads)
lies in `build/bench`; what it measures goes to `bench/results`. No server's code lives here except
the peers', each in a directory of its own below `bench/serving/peers`.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""

HERE = ROOT / "bench"

BUILD = ROOT / "build" / "bench"
"""What a run makes and git ignores."""

RESULTS = HERE / "results"

MODEL = "simple-cnn/1"
"""The artifact that every server serves: the exercise's network, in float32."""

ARTIFACT = ROOT / "models_store" / MODEL
