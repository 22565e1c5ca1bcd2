"""Sources of the figures in the documents: `python -m bench.serving` and the like.

A run builds virtual environments and the open-loop generator in `build/bench` and writes figures to
`bench/results`. The peers' servers are in `bench/serving/peers`, one directory each.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""

HERE = ROOT / "bench"

BUILD = ROOT / "build" / "bench"
"""Files that a run makes; git ignores them."""

RESULTS = HERE / "results"

MODEL = "simple-cnn/1"
"""The artifact that servers are compared with: the exercise's network."""

ARTIFACT = ROOT / "models_store" / MODEL
