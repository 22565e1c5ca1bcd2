"""A backend's answers for the golden images, compared with those of the export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import GOLDEN, MANIFEST
from app.artifact.golden import check_golden, pack_golden, read_golden
from app.artifact.manifest import BackendName, Precision
from app.artifact.tensors import OOD_SCORE, Images, Outputs, Probabilities
from app.errors import ArtifactError
from app.inference.backends import open_backend
from tests.support.artifacts import (
    CLASSES,
    amend,
    copy_store,
    numpy_predict,
    numpy_predict_int8,
    rehash,
    write_artifact,
)


@pytest.fixture
def path(store_path: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return copy_store(store_path, tmp_path / "store") / "colour" / "2"


@pytest.fixture
def int8_path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path, "small", "1", int8=True).path


IMAGES = np.zeros((2, 32, 32, 3), np.uint8)
ROWS = np.zeros((2, len(CLASSES)), np.float32)


def _outputs(predict: Callable[[Images], Probabilities]) -> Callable[[Images], Outputs]:
    return lambda images: Outputs.of_classes(predict(images))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "holds no arrays images and probabilities"),
        (
            {"images": IMAGES[:0], "probabilities": ROWS[:0]},
            r"images is uint8 \(0, 32, 32, 3\); it",
        ),
        ({"images": IMAGES.astype(np.float32), "probabilities": ROWS}, "images is float32 .* must"),
        ({"images": IMAGES[:, :8], "probabilities": ROWS}, r"images is uint8 \(2, 8, 32, 3\)"),
        ({"images": np.uint8(0), "probabilities": ROWS}, r"images is uint8 \(\)"),
        ({"images": IMAGES, "probabilities": ROWS[:, 1:]}, r"probabilities is float32 \(2, 5\)"),
        ({"images": IMAGES, "probabilities": ROWS.astype(np.int64)}, "probabilities is int64"),
        ({"images": IMAGES, "probabilities": ROWS[:1]}, r"shape \(2, 6\), expected \(1, 6\)"),
    ],
)
def test_golden_images_that_are_none_are_found(
    path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    np.savez(path / GOLDEN, **arrays)  # type: ignore[arg-type]
    rehash(path)
    with pytest.raises(ArtifactError, match=rf"golden\.npz: .*{message}"):
        check_golden(read_artifact(path), "onnx-cpu", _outputs(numpy_predict))


def test_golden_check_returns_the_largest_difference(path: Path) -> None:
    artifact = read_artifact(path)
    assert check_golden(artifact, "onnx-cpu", _outputs(numpy_predict)) == 0
    near = check_golden(
        artifact, "onnx-cpu", lambda images: Outputs.of_classes(numpy_predict(images) + 5e-5)
    )
    assert near == pytest.approx(5e-5, rel=0.01)


def test_golden_check_fails_over_the_tolerance_on_nan_and_on_another_shape(path: Path) -> None:
    artifact = read_artifact(path)
    with pytest.raises(ArtifactError, match=r"by 0\.001; the tolerance is 0\.0001"):
        check_golden(
            artifact, "onnx-cpu", lambda images: Outputs.of_classes(numpy_predict(images) + 1e-3)
        )
    with pytest.raises(ArtifactError, match="by nan"):
        check_golden(
            artifact, "onnx-cpu", lambda images: Outputs.of_classes(numpy_predict(images) * np.nan)
        )
    with pytest.raises(ArtifactError, match=r"shape \(5, 6\), expected \(6, 6\)"):
        check_golden(
            artifact, "onnx-cpu", lambda images: Outputs.of_classes(numpy_predict(images[1:]))
        )


def test_backend_without_a_tolerance_is_not_proven(path: Path) -> None:
    with pytest.raises(ArtifactError, match="no golden tolerance for torch-cuda"):
        check_golden(read_artifact(path), "torch-cuda", _outputs(numpy_predict))


def test_int8_has_golden_probabilities_and_a_tolerance_of_its_own(int8_path: Path) -> None:
    artifact = read_artifact(int8_path)
    assert check_golden(artifact, "onnx-cpu", _outputs(numpy_predict_int8), "int8") == 0
    with pytest.raises(ArtifactError, match=r"differs .* the tolerance is 0\.0001"):
        check_golden(artifact, "onnx-cpu", _outputs(numpy_predict_int8))
    with pytest.raises(ArtifactError, match=r"differs .* the tolerance is 0\.01"):
        check_golden(artifact, "onnx-cpu", _outputs(numpy_predict), "int8")


def test_golden_file_without_int8_probabilities_is_named(int8_path: Path) -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    np.savez(int8_path / "golden.npz", images=images, probabilities=numpy_predict(images))
    rehash(int8_path)
    with pytest.raises(ArtifactError, match="holds no arrays images and probabilities_int8"):
        check_golden(read_artifact(int8_path), "onnx-cpu", _outputs(numpy_predict_int8), "int8")


@pytest.mark.parametrize("backend", ["onnx-cpu", "torch-cpu"])
def test_both_graphs_give_the_scores_that_were_seen_at_export(
    exported: Artifact, backend: BackendName
) -> None:
    images, expected = read_golden(exported)
    found = open_backend(exported, backend).predict(images)
    assert expected.ood_scores is not None
    assert found.ood_scores is not None
    np.testing.assert_allclose(found.ood_scores, expected.ood_scores, rtol=0.01, atol=0.01)


def test_graph_with_other_scores_is_refused(exported: Artifact) -> None:
    _, golden = read_golden(exported)
    assert golden.ood_scores is not None
    wrong = Outputs.of_classes(golden.probabilities, golden.ood_scores + 1)

    def predict(_: Images) -> Outputs:
        return wrong

    with pytest.raises(ArtifactError, match=r"scores by .* the tolerance is 0\.05"):
        check_golden(exported, "onnx-cpu", predict)


@pytest.mark.parametrize("scores", [None, np.zeros(1, np.float32)])
def test_graph_that_gives_none_where_it_should_is_refused(
    exported: Artifact, scores: NDArray[np.float32] | None
) -> None:
    _, golden = read_golden(exported)
    other = Outputs.of_classes(golden.probabilities, scores)
    with pytest.raises(ArtifactError, match="gives other out-of-distribution scores"):
        check_golden(exported, "onnx-cpu", lambda _: other)


def test_score_that_is_no_number_is_refused(exported: Artifact) -> None:
    _, golden = read_golden(exported)
    assert golden.ood_scores is not None
    other = Outputs.of_classes(golden.probabilities, golden.ood_scores * np.nan)
    with pytest.raises(ArtifactError, match="by nan"):
        check_golden(exported, "onnx-cpu", lambda _: other)


def test_golden_answers_are_read_as_they_were_packed(int8_path: Path) -> None:
    images, scores = np.zeros((2, 32, 32, 3), np.uint8), np.array([1, 2], np.float32)
    plain = Outputs.of_classes(numpy_predict(images), scores)
    int8 = Outputs.of_classes(numpy_predict_int8(images), -scores)
    golden: dict[str, Any] = pack_golden(images, {"float32": plain, "int8": int8})
    np.savez(int8_path / GOLDEN, allow_pickle=False, **golden)
    outputs = json.loads((int8_path / MANIFEST).read_text())["outputs"]
    score = {"name": OOD_SCORE, "dtype": "float32", "shape": ["N"]}
    artifact = amend(int8_path, outputs=[*outputs, score])
    expected: dict[Precision, Outputs] = {"float32": plain, "int8": int8}
    for precision, answers in expected.items():
        read, found = read_golden(artifact, precision)
        assert np.array_equal(read, images)
        assert np.array_equal(found.probabilities, answers.probabilities)
        assert answers.ood_scores is not None
        assert found.ood_scores is not None
        assert np.array_equal(found.ood_scores, answers.ood_scores)
