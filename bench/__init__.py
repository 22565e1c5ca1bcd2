"""What the README's figures of serving come from: `python -m bench.serving` makes all of them.

Everything that a run builds (virtual environments of the peers, the open-loop generator, payloads)
lies in `build/bench`; what it measures goes to `bench/results`. No server's code lives here except
the peers', each in a directory of its own below `bench/peers`.
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
