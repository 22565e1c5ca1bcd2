import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact import directory
from app.artifact.directory import Artifact, parse_manifest, read_artifact, record_file
from app.errors import ArtifactError
from tests.support.artifacts import (
    CLASSES,
    COUNTS,
    copy_store,
    rehash,
    weights,
    write_artifact,
    write_graph,
    write_older_artifact,
)


@pytest.fixture
def path(store_path: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return copy_store(store_path, tmp_path / "store") / "colour" / "2"


def _change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def assert_same(
    found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]
) -> None:
    """In the same order, too."""
    assert list(found) == list(expected)
    for layer, kernels in expected.items():
        assert found[layer].dtype == np.float32
        np.testing.assert_array_equal(found[layer], kernels)


def test_sound_artifact_verifies(path: Path) -> None:
    artifact = read_artifact(path)
    artifact.verify()
    assert artifact.manifest.image_size == (32, 32)
    assert artifact.evaluation().confusion_matrix == COUNTS
    assert_same(artifact.filters(), weights())


def test_weights_that_are_not_as_the_manifest_says_are_found(path: Path) -> None:
    _change_manifest(path, lambda m: m["layers"][0].update(shape=[9, 1, 1]))
    with pytest.raises(ArtifactError, match=r"'conv1' has weights \(8, 3, 3, 3\); .* says \(9,\)"):
        read_artifact(path).verify()


def test_layer_whose_weights_are_not_in_the_graph_is_named(path: Path) -> None:
    _change_manifest(path, lambda m: m["layers"][1].update(name="conv9"))
    with pytest.raises(ArtifactError, match=r"model\.onnx: no weights lead to 'layer.conv9'"):
        read_artifact(path).verify()


def test_fully_connected_layer_that_is_no_picture_is_found(path: Path) -> None:
    artifact = write_graph(path, {"fc1": np.ones((4, 3000), np.float32)})
    with pytest.raises(ArtifactError, match=r"model\.onnx: cannot reshape"):
        artifact.filters()


def test_more_weights_to_look_at_than_fit_in_memory_are_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_ARRAY_BYTES", 5471)
    with pytest.raises(ArtifactError, match="have 5472 bytes; the limit is 5471"):
        read_artifact(path).filters()


def test_graph_that_is_none_does_not_load(path: Path) -> None:
    (path / "model.onnx").write_bytes(b"not a graph")
    rehash(path)
    with pytest.raises(ArtifactError, match=r"model\.onnx: wire type 6 at byte 0"):
        read_artifact(path).verify()
    with pytest.raises(ArtifactError, match=r"model\.onnx: does not load: wire type 6 at byte 0"):
        read_artifact(path).read_graph("model.onnx")


def test_older_artifact_has_its_weights_in_a_file(tmp_path: Path) -> None:
    artifact = write_older_artifact(tmp_path, "older", "1")
    artifact.verify()
    assert "filters.npz" in artifact.manifest.files
    assert_same(artifact.filters(), weights())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version: Input should be 1"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m.pop("classes"), "classes: Field required"),
        (lambda m: m.update(version="0"), "version: String should match"),
        (lambda m: m.update(name="../x"), "name: .* is not a name"),
        (lambda m: m.update(classes=["one"]), "classes: .* at least 2"),
        (lambda m: m.update(classes=["red"] * 6), "classes: 'red' stands there 6 times"),
        (
            lambda m: m["classes"].__setitem__(slice(2), ["gru\u0308n", "gr\u00fcn"]),
            "classes: 'gr\u00fcn' stands there 2 times",
        ),
        (lambda m: m["classes"].pop(), r"logits is float32 \('N', 6\); with 5 classes it must"),
        (lambda m: m["outputs"][1].update(dtype="uint8"), "probabilities is uint8"),
        (lambda m: m["outputs"][1].update(shape=[6, "N"]), "probabilities is float32"),
        (lambda m: m["input"].update(dtype="float32"), "the input is float32"),
        (lambda m: m["input"].update(shape=["N"]), r"uint8 \('N',\); it must be"),
        (lambda m: m["input"].update(shape=[]), "the input is uint8"),
        (lambda m: m["input"].update(shape=["N", "N", 32, 3]), "the input is uint8"),
        (lambda m: m["input"].update(shape=[1, 32, 32, 3]), "the input is uint8"),
        (lambda m: m["input"].update(shape=["N", 32, 32, 4]), "the input is uint8"),
        (lambda m: m["input"].update(shape=["N", 0, 32, 3]), r"input\.shape\.1\."),
        (lambda m: m["golden_tolerance"].update({"onnx-cpu": 1.0}), "less than 1"),
        (lambda m: m["files"].update({"../../etc/passwd": m["files"]["model.ts"]}), "plain file"),
        (lambda m: m["files"]["model.ts"].update(sha256="zz"), "sha256: String should match"),
    ],
)
def test_manifest_that_breaks_the_schema_is_refused_in_one_line(
    path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _change_manifest(path, change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*{message}") as caught:
        read_artifact(path)
    assert "\n" not in str(caught.value)


def test_manifest_that_is_not_json_is_refused(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\x00\xff")
    with pytest.raises(ArtifactError, match=r"manifest\.json: "):
        read_artifact(path)


@pytest.mark.parametrize("file_name", ["model.onnx", "model.ts", "golden.npz", "evaluation.json"])
def test_file_that_a_server_needs_must_be_listed(path: Path, file_name: str) -> None:
    _change_manifest(path, lambda manifest: manifest["files"].pop(file_name))
    with pytest.raises(ArtifactError, match=f"{file_name}: not listed"):
        read_artifact(path).verify()


def test_missing_file_is_named(path: Path) -> None:
    (path / "evaluation.json").unlink()
    with pytest.raises(ArtifactError, match=r"evaluation\.json: no such file"):
        read_artifact(path).verify()


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_file_of_another_size_is_named_with_both_sizes(path: Path, size: int) -> None:
    (path / "model.ts").write_bytes(bytes(size))
    with pytest.raises(ArtifactError, match=r"model\.ts: holds \d+ bytes; manifest.json says 25"):
        read_artifact(path).verify()


def test_pickled_arrays_are_not_loaded(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, conv1=np.array([{"a": 1}], dtype=object))
    assert pickle.PROTO in buffer.getvalue()
    (path / "filters.npz").write_bytes(buffer.getvalue())
    rehash(path)
    with pytest.raises(ArtifactError, match=r"filters\.npz: not an archive of plain arrays"):
        read_artifact(path).arrays("filters.npz")


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _zip(*members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, member in enumerate(members):
            archive.writestr(f"{number}.npy", member)
    return buffer.getvalue()


def _spoilt() -> bytes:
    """An archive whose compressed bytes are none."""
    data = bytearray(_npz(conv1=np.random.default_rng(0).bytes(1000)))  # type: ignore[arg-type]
    data[60:200] = b"\xff" * 140
    return bytes(data)


HUGE = _npy(np.zeros(1, np.float32)).replace(b"(1,), }         ", b"(274877906944,), }")[:128]
BAD_ARCHIVES = {
    "empty": b"",
    "text": b"hello",
    "one array": _npy(np.zeros(3, np.float32)),
    "one array before an archive": _npy(np.zeros(3, np.float32)) + _zip(b""),
    "bad compression": _spoilt(),
    "an empty member": _zip(b""),
    "a member that is text": _zip(b"hello"),
    "a member that says it has a tebibyte": _zip(HUGE),
    "cut short": _npz(conv1=np.zeros((8, 3, 3, 3), np.float32))[:-30],
}


@pytest.mark.parametrize("file_name", ["golden.npz", "filters.npz"])
@pytest.mark.parametrize("content", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_file_that_is_no_archive_of_arrays_is_named_in_one_line(
    path: Path, file_name: str, content: bytes
) -> None:
    (path / file_name).write_bytes(content)
    rehash(path)
    with pytest.raises(ArtifactError, match=f"{file_name}: not an archive of pl") as caught:
        read_artifact(path).arrays(file_name)
    assert "\n" not in str(caught.value)


def test_archive_that_unpacks_to_too_much_is_not_unpacked(path: Path) -> None:
    zeros = bytes(1 << 20)
    (path / "filters.npz").write_bytes(_zip(*[zeros] * 257))
    rehash(path)
    with pytest.raises(ArtifactError, match="has 269484032 bytes; the limit is 268435456"):
        read_artifact(path).verify()


@pytest.mark.parametrize(
    "kernels",
    [
        np.zeros((8, 3, 3), np.float32),
        np.zeros((8, 3, 3, 3), np.float64),
        np.zeros((8, 3, 3, 3), ">f4"),
        np.zeros((0, 3, 3, 3), np.float32),
        np.array("text"),
    ],
)
def test_filters_that_cannot_be_shown_are_found(path: Path, kernels: NDArray[Any]) -> None:
    (path / "filters.npz").write_bytes(_npz(conv1=kernels))
    rehash(path)
    with pytest.raises(ArtifactError, match=r"'conv1' is .* must be float32 or float16 of four"):
        read_artifact(path).verify()


def test_evaluation_that_breaks_the_schema_is_named(path: Path) -> None:
    (path / "evaluation.json").write_text(json.dumps({"classes": CLASSES}))
    rehash(path)
    with pytest.raises(ArtifactError, match=r"evaluation\.json: images: Field required"):
        read_artifact(path).evaluation()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["confusion_matrix"].pop(), "the confusion matrix is not 6x6"),
        (lambda e: e["confusion_matrix"][2].pop(), "the confusion matrix is not 6x6"),
        (
            lambda e: e["confusion_matrix"][2].__setitem__(0, -1),
            "confusion_matrix.2.0: .* equal to 0",
        ),
        (lambda e: e["per_class"].pop(), "per_class does not have the classes"),
        (lambda e: e["per_class"].reverse(), "per_class does not have the classes"),
        (lambda e: e["classes"].__setitem__(0, "blue"), "classes: 'blue' stands there 2 times"),
        (
            lambda e: (e["classes"].__setitem__(0, "pink"), e["per_class"][0].update(label="pink")),
            "has other classes than manifest.json",
        ),
    ],
)
def test_evaluation_that_does_not_fit_itself_or_the_manifest_is_found(
    path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    file = path / "evaluation.json"
    evaluation = json.loads(file.read_text())
    change(evaluation)
    file.write_text(json.dumps(evaluation))
    rehash(path)
    with pytest.raises(ArtifactError, match=rf"evaluation\.json: .*{message}"):
        read_artifact(path).verify()


def test_manifest_cannot_be_changed(path: Path) -> None:
    artifact: Artifact = read_artifact(path)
    with pytest.raises(ValueError, match="frozen"):
        artifact.manifest.seed = 1


def test_record_of_a_file_is_its_size_and_hash(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    record = record_file(file)
    assert record.bytes == 3
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_manifest_survives_a_round_trip(path: Path) -> None:
    manifest = read_artifact(path).manifest
    assert parse_manifest(manifest.model_dump_json().encode()) == manifest


@pytest.fixture
def int8_path(tmp_path: Path) -> Path:
    """An artifact with an int8 graph, to damage."""
    return write_artifact(tmp_path, "small", "1", int8=True).path


def test_model_says_in_which_precisions_it_can_be_served(path: Path, int8_path: Path) -> None:
    assert read_artifact(path).manifest.precisions == ("float32",)
    assert read_artifact(int8_path).manifest.precisions == ("float32", "int8")


def test_manifest_without_int8_is_written_without_the_word(path: Path) -> None:
    assert "int8" not in json.loads(read_artifact(path).manifest.model_dump_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["files"].pop("model.int8.onnx"),
            "int8.file is 'model.int8.onnx', which files",
        ),
        (lambda m: m["int8"].update(surprise=1), "int8.surprise: Extra inputs"),
        (lambda m: m["int8"].update(golden_tolerance=1.0), "int8.golden_tolerance: .* less than 1"),
        (lambda m: m["int8"].update(calibration_images=0), "int8.calibration_images: .* greater"),
    ],
)
def test_int8_record_that_makes_no_sense_is_refused_in_one_line(
    int8_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _change_manifest(int8_path, change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*{message}") as caught:
        read_artifact(int8_path)
    assert "\n" not in str(caught.value)
