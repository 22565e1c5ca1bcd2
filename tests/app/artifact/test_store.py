from pathlib import Path

import pytest

from app.artifact.manifest import Precision
from app.artifact.store import read_store
from app.errors import ArtifactError, UnknownModel
from app.inference.backends import open_backends
from tests.support.artifacts import copy_store, rehash, write_artifact


def test_models_stand_by_name_and_ascending_version(tmp_path: Path) -> None:
    for version in ("2", "10", "1"):
        write_artifact(tmp_path, "b", version)
    write_artifact(tmp_path, "a", "1")
    store = read_store(tmp_path, (), "b")
    assert [item.ref for item in store] == ["a/1", "b/1", "b/2", "b/10"]
    assert [item.manifest.version for item in store.versions("b")] == ["1", "2", "10"]


def test_default_is_the_highest_version_unless_one_is_named(store_path: Path) -> None:
    assert read_store(store_path, (), "colour").default.ref == "colour/2"
    assert read_store(store_path, (), "colour/1").default.ref == "colour/1"


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        (None, None, "colour/1"),
        (None, "2", "colour/2"),
        ("", "", "colour/1"),
        ("colour", "", "colour/1"),
        ("flat", "", "flat/1"),
        ("colour", None, "colour/1"),
        ("flat", None, "flat/1"),
        ("colour", "2", "colour/2"),
    ],
)
def test_request_finds_the_model_that_it_means(
    store_path: Path, name: str | None, version: str | None, expected: str
) -> None:
    assert read_store(store_path, (), "colour/1").find(name, version).ref == expected


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("vgg", None, "no model 'vgg'; there are: colour, flat$"),
        ("flat", "7", "no version '7' of flat; there are: 1"),
        ("x" * 500, None, "no model 'x{64}';"),
        ("../colour", None, r"no model '\.\./colour'"),
        (
            "colour/2",
            None,
            "no model 'colour/2'; there are: colour, flat; the version is given apart: version=2$",
        ),
        ("colour/1", "2", "no model 'colour/1'; there are: .*; the version is .*: version=1$"),
        ("vgg/2", None, "no model 'vgg/2'; there are: colour, flat$"),
        ("colour/" + "9" * 500, None, "version=9{16}$"),
        ("colour", "1/2", "no version '1/2' of colour; there are: 1, 2"),
    ],
)
def test_unknown_model_is_named_beside_what_there_is(
    store_path: Path, name: str, version: str | None, message: str
) -> None:
    with pytest.raises(UnknownModel, match=message):
        read_store(store_path, (), "colour").find(name, version)


def test_only_what_is_asked_for_is_read(store_path: Path) -> None:
    store = read_store(store_path, ("colour/1", "flat"), "colour")
    assert [item.ref for item in store] == ["colour/1", "flat/1"]


def test_model_that_is_asked_for_and_missing_is_named(store_path: Path) -> None:
    with pytest.raises(ArtifactError, match="colour/9: no such model"):
        read_store(store_path, ("colour/9",), "colour")


def test_default_that_is_not_served_is_named(store_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"DEFAULT_MODEL=vgg: .* there are: colour, flat"):
        read_store(store_path, (), "vgg")


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (("b-net", "simple-cnn", "a-net"), "simple-cnn/1"),
        (("b-net",), "b-net/1"),
    ],
)
def test_default_that_nobody_names_is_simple_cnn_or_else_the_only_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, served: tuple[str, ...], expected: str
) -> None:
    for name in served:
        write_artifact(tmp_path, name, "1")
    assert read_store(tmp_path, (), None).default.ref == expected
    assert caplog.messages == []


def test_default_that_was_chosen_among_several_models_is_logged(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_store(store_path, (), None).default.ref == "colour/2"
    assert caplog.messages == [
        "colour is the default model, the first by name of colour, flat; "
        "CONVSCOPE_DEFAULT_MODEL names another"
    ]


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: no such directory; CONVSCOPE_STORE"):
        read_store(tmp_path / "nowhere", (), "colour")


def test_version_without_a_manifest_is_an_error_and_hidden_files_are_not(
    store_path: Path, tmp_path: Path
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    (store / ".partial" / "1").mkdir(parents=True)
    (store / "colour" / ".3.partial").mkdir()
    (store / "README.md").write_text("notes")
    assert len(list(read_store(store, (), "colour"))) == 3
    (store / "colour" / "3").mkdir()
    with pytest.raises(ArtifactError, match=r"colour/3/manifest\.json: no such file"):
        read_store(store, (), "colour")


@pytest.mark.parametrize("file_name", ["model.onnx", "model.ts", "golden.npz", "evaluation.json"])
def test_one_changed_byte_in_any_file_is_found(
    store_path: Path, tmp_path: Path, file_name: str
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    path = store / "flat" / "1" / file_name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{file_name}: sha256 is .*; manifest.json says"):
        open_backends(read_store(store, (), "colour"), "onnx-cpu", 1)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_one_changed_byte_in_an_int8_graph_is_found(tmp_path: Path, precision: Precision) -> None:
    path = write_artifact(tmp_path, "small", "1", int8=True).path / "model.int8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ArtifactError, match=r"model\.int8\.onnx: sha256 is .*; manifest\.json says"
    ):
        open_backends(read_store(tmp_path, (), "small"), "onnx-cpu", 1, precision)


def test_one_model_without_an_int8_graph_stops_all_of_int8(tmp_path: Path) -> None:
    write_artifact(tmp_path, "small", "1", int8=True)
    write_artifact(tmp_path, "large", "3")
    store = read_store(tmp_path, (), "small")
    with pytest.raises(ArtifactError, match="large/3: holds no int8 graph"):
        open_backends(store, "onnx-cpu", 1, "int8")
    without = read_store(tmp_path, ("small",), "small")
    assert set(open_backends(without, "onnx-cpu", 1, "int8")) == {"small/1"}


def test_model_that_answers_differently_than_at_export_is_not_opened(
    store_path: Path, tmp_path: Path
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    path = store / "flat" / "1"
    graph = path / "model.onnx"
    # The float32 2/255 becomes 4/255: a sound graph, and another model.
    graph.write_bytes(graph.read_bytes().replace(b"\x81\x80\x00\x3c", b"\x81\x80\x80\x3c"))
    rehash(path)
    with pytest.raises(ArtifactError, match=r"golden\.npz: onnx-cpu differs .* by 0\.\d+; the tol"):
        open_backends(read_store(store, (), "colour"), "onnx-cpu", 1)


def test_manifest_is_not_believed_about_its_place(store_path: Path, tmp_path: Path) -> None:
    store = copy_store(store_path, tmp_path / "store")
    (store / "flat").rename(store / "round")
    with pytest.raises(ArtifactError, match="says flat/1; the directory is round/1"):
        read_store(store, (), "colour")


def test_every_model_is_opened(store_path: Path) -> None:
    store = read_store(store_path, (), "colour")
    assert set(open_backends(store, "onnx-cpu", 1)) == {item.ref for item in store}
