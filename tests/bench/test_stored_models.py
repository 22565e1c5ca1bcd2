"""Which models of the store a benchmark measures."""

import json
from pathlib import Path

import pytest

from app.artifact.directory import Artifact
from bench.quality import stored_models
from bench.quality.stored_models import measure_store


def test_a_model_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_models, "RESULTS", tmp_path)
    monkeypatch.setenv("CONVSCOPE_MODELS", "fc,simple-cnn")
    asked: list[str] = []

    def measure(artifact: Artifact) -> dict[str, int]:
        asked.append(artifact.ref)
        return {"files": len(artifact.manifest.files)}

    found = measure_store("files", measure, images=5)
    assert list(found["models"]) == asked
    assert {ref.split("/")[0] for ref in asked} == {"fc", "simple-cnn"}
    kept = {ref: found["models"][ref] for ref in asked[1:]} | {"gone/1": {"files": 1}}
    (tmp_path / "files.json").write_text(json.dumps(found | {"models": kept}))
    first = asked[0]
    asked.clear()
    assert measure_store("files", measure, images=5) == found
    assert asked == [first]

    def fail(artifact: Artifact) -> dict[str, int]:
        raise KeyboardInterrupt(artifact.ref)

    kept.pop(asked[0], None)
    (tmp_path / "files.json").write_text(json.dumps(found | {"models": kept}))
    with pytest.raises(KeyboardInterrupt):
        measure_store("files", fail, images=5)
    assert json.loads((tmp_path / "files.json").read_text())["models"] == kept
    asked.clear()
    assert measure_store("files", measure, images=6)["images"] == 6
    assert asked == list(found["models"])
