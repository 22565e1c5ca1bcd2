import csv
import errno
import io
import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from app.api.schemas import Prediction
from app.artifact.store import read_store
from app.cli import main
from app.local import UNFAMILIAR, Classes, FileReader, Options, find_files
from app.settings import read_settings
from bench import ROOT
from tests.conftest import Picture
from tests.support.artifacts import CLASSES, amend, confidence, copy_store, write_artifact
from tests.support.detectors import write_detector
from tests.support.segmenters import write_segmenter
from tests.support.servers import CONVSCOPE, START_SECONDS


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, store_path: Path) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(store_path))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "colour")


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments], input=io.BytesIO(stdin))


@pytest.fixture
def images(tmp_path: Path, picture: Picture) -> Sequence[Path]:
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path in paths:
        path.write_bytes(picture(path.stem))
    return paths


def test_predict_prints_a_line_for_each_image(images: Sequence[Path]) -> None:
    result = run("predict", *images, "--top-k", "2")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == f"{images[0]}: red 99.8%, magenta 0.1%"
    assert second.startswith(f"{images[1]}: blue 99.8%")


@pytest.mark.parametrize(("arguments", "lines"), [((), 1), (("--model", "colour"), 0)])
def test_predict_tells_of_a_default_that_was_chosen_only_if_it_is_asked(
    images: Sequence[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: Sequence[str],
    lines: int,
) -> None:
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "")
    assert run("predict", *images, *arguments).exit_code == 0
    told = [text for text in caplog.messages if text.startswith("colour is the default model, ")]
    assert len(told) == lines


@pytest.fixture
def _sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with sets: up to 98%, they hold every class with a probability of 0.1 and more."""
    path = write_artifact(tmp_path / "sure", "colour", "1").path
    lac = (0.9,) * 98 + (1.0,)
    amend(path, confidence={"float32": confidence(lac, lac, 0.5)})
    monkeypatch.setenv("CONVSCOPE_STORE", str(tmp_path / "sure"))


@pytest.mark.usefixtures("_sure")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "90% set: red"),
        (["--coverage", "0.95"], "95% set: red"),
        (["--coverage", "0.981"], f"99% set: {', '.join(CLASSES)}"),
    ],
)
def test_predict_prints_a_set_that_holds_the_true_class(
    images: Sequence[Path], arguments: Sequence[str], said: str
) -> None:
    assert run("predict", images[0], *arguments).stdout == f"{images[0]}: red 99.8%; {said}\n"


@pytest.mark.usefixtures("_sure")
def test_predict_prints_a_set_that_holds_the_likeliest_class_at_least(tmp_path: Path) -> None:
    mixed = tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (128, 128, 128)).save(mixed)
    amend(
        tmp_path / "sure/colour/1", confidence={"float32": confidence((0.1,) * 99, (0.0,) * 99, 1)}
    )
    said = run("predict", mixed).stdout
    label = said.removeprefix(f"{mixed}: ").split()[0]
    assert label in CLASSES
    assert said.endswith(f"; 90% set: {label}\n")


def test_models_says_nothing_of_more_models_where_the_settings_chose_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CONVSCOPE_STORE")
    monkeypatch.delenv("CONVSCOPE_DEFAULT_MODEL")
    monkeypatch.setenv("CONVSCOPE_MODELS", "fast")
    result = run("models")
    assert (result.exit_code, result.stderr) == (0, "")


def test_predict_warns_of_a_picture_that_is_unlike_the_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(ROOT / "models_store"))
    monkeypatch.setenv("CONVSCOPE_DEFAULT_MODEL", "simple-cnn")
    noise = tmp_path / "noise.png"
    Image.effect_noise((32, 32), 200).save(noise)
    horse, foreign = run("predict", ROOT / "docs/images/horse.png", noise).stdout.splitlines()
    assert re.search(r"/horse.png: horse 9\d\.\d%; 90% set: horse$", horse)
    warning = foreign.rpartition("; ")[2]
    assert warning == UNFAMILIAR
    assert warning in (ROOT / "app/web/classify.js").read_text()


def test_predict_shows_the_fault_of_a_file_that_was_read(
    images: Sequence[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    with Image.open(images[0]) as picture:
        picture.save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[:-2])
    fault = "the JPEG has no end marker; its pixels are all there"
    sound, flagged = run("predict", images[0], cut).stdout.splitlines()
    assert "marker" not in sound
    assert re.fullmatch(rf"{cut}: red \d\d\.\d%; {fault}", flagged)
    of_json = json.loads(run("predict", images[0], cut, "--json").stdout)["predictions"]
    assert [row.get("warning") for row in of_json] == [None, fault]
    of_csv = csv.DictReader(io.StringIO(run("predict", images[0], cut, "--csv").stdout))
    assert [row["warning"] for row in of_csv] == ["", fault]


def test_predict_prints_the_answer_of_the_service_as_json(images: Sequence[Path]) -> None:
    result = run("predict", images[0], "--json", "--model", "flat", "--version", "1")
    answer = json.loads(result.stdout)
    assert (answer["model"], answer["version"]) == ("flat", "1")
    (prediction,) = answer["predictions"]
    assert prediction["label"] == "red"
    assert prediction["filename"] == str(images[0])
    assert set(prediction["probabilities"]) == set(CLASSES)


@pytest.mark.parametrize("more", [[], ["--version", "1"]])
def test_predict_takes_a_version_behind_the_models_name(
    images: Sequence[Path], more: Sequence[str]
) -> None:
    answer = json.loads(run("predict", images[0], "--json", "--model", "colour/1", *more).stdout)
    assert (answer["model"], answer["version"]) == ("colour", "1")


@pytest.mark.usefixtures("_sure")
def test_predict_prints_a_row_of_csv_for_each_file(tmp_path: Path, picture: Picture) -> None:
    image, text = tmp_path / 'red, "or" so.png', tmp_path / "text"
    image.write_bytes(picture("red"))
    text.write_text("hello")
    result = run("predict", image, text, "--csv", "--coverage", "0.99")
    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert (first["file"], first["label"], first["error"]) == (str(image), "red", "")
    assert float(first["probability"]) == pytest.approx(0.998, abs=0.001)
    assert first["prediction_set"] == "|".join(CLASSES)
    assert (second["file"], second["label"]) == (str(text), "")
    assert second["error"].startswith("not an image")


def test_names_with_line_ends_are_read_back_from_csv(tmp_path: Path, picture: Picture) -> None:
    names = ["a\nb", "a\rb", "a\r\nb", 'a"b', "a,b", "a;b\tc", " a ", "=1+1", "\u2028"]
    for name in names:
        (tmp_path / name).write_bytes(picture("red"))
    text = run("predict", tmp_path, "--csv").stdout_bytes.decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    found = [(Path(row["file"]).name, row["label"], row["error"]) for row in rows]
    assert found == [(name, "red", "") for name in sorted(names)]


def test_letters_that_the_terminal_lacks_are_escaped_and_programs_get_them_all(
    tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "\U0001f431ü.png").write_bytes(picture("red"))

    def printed(*options: str) -> bytes:
        command = [*CONVSCOPE, "predict", str(tmp_path), *options]
        environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
        done = subprocess.run(
            command, capture_output=True, check=True, env=environment, timeout=START_SECONDS
        )
        return done.stdout

    assert "🐱ü.png" in printed("--csv").decode()
    (row,) = json.loads(printed("--json"))["predictions"]
    assert row["filename"] == f"{tmp_path}/🐱ü.png"
    assert "\\U0001f431ü.png: red" in printed().decode("latin-1")


def test_predict_reads_standard_input(picture: Picture) -> None:
    result = run("predict", "-", stdin=picture("green"))
    assert result.stdout.startswith("-: green")


def test_predict_gives_the_reason_in_the_row_of_a_bad_file_and_goes_on(
    images: Sequence[Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    files = (tmp_path / "none.png", images[0], text, tmp_path / ("x" * 300))
    result = run("predict", *files)
    assert result.exit_code == 1
    missing, sound, no_image, too_long = result.stdout.splitlines()
    assert missing == f"{files[0]}: error: No such file or directory"
    assert sound.startswith(f"{images[0]}: red")
    assert no_image.startswith(f"{text}: error: not an image")
    assert too_long.endswith(": error: File name too long")
    rows = json.loads(run("predict", *files, "--json").stdout)["predictions"]
    assert [row.get("label") for row in rows] == [None, "red", None, None]
    assert rows[0] == {"filename": str(files[0]), "error": "No such file or directory"}


def test_predict_reads_no_more_of_a_file_than_the_limit(
    images: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_MAX_BODY_BYTES", "1024")
    endless = Path("/dev/zero")
    result = run("predict", endless, images[0])
    first, second = result.stdout.splitlines()
    assert first == (
        f"{endless}: error: holds more than 1024 bytes; CONVSCOPE_MAX_BODY_BYTES is the limit"
    )
    assert second.startswith(f"{images[0]}: red")


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Pictures in two folders among what is no picture."""
    top = tmp_path / "photos"
    (top / "more" / ".cache").mkdir(parents=True)
    (top / "empty").mkdir()
    for name, label in (("b.png", "blue"), ("more/a.png", "red"), ("z.png", "green")):
        (top / name).write_bytes(picture(label))
    for hidden in (".hidden.png", "more/.cache/x.png"):
        (top / hidden).write_text("x")
    (top / "notes.txt").write_text("hello")
    os.mkfifo(top / "pipe")
    return top


def test_predict_finds_the_files_of_a_folder_in_order(folder: Path) -> None:
    result = run("predict", folder, "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["predictions"]
    found = [(row["filename"], row.get("label") or row["error"][:12]) for row in rows]
    assert found == [
        (f"{folder}/b.png", "blue"),
        (f"{folder}/notes.txt", "not an image"),
        (f"{folder}/pipe", "not a regula"),
        (f"{folder}/z.png", "green"),
        (f"{folder}/more/a.png", "red"),
    ]


def test_predict_takes_patterns_that_the_shell_has_left(folder: Path) -> None:
    (folder / "[b].png").write_bytes((folder / "b.png").read_bytes())
    result = run("predict", f"{folder}/*.png", f"{folder}/[b].png", f"{folder}/**/a.png")
    assert result.exit_code == 0
    names = [
        line.partition(": ")[0].removeprefix(f"{folder}/") for line in result.stdout.split("\n")
    ]
    assert names == ["[b].png", "b.png", "z.png", "[b].png", "more/a.png", ""]


def test_pattern_of_all_folders_names_each_file_once(folder: Path) -> None:
    result = run("predict", f"{folder}/more/**", f"{folder}/m*", "--csv")
    files = [row["file"] for row in csv.DictReader(io.StringIO(result.stdout))]
    assert files == [f"{folder}/more/a.png"] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_full_disk_and_closed_input_are_told_in_one_line(images: Sequence[Path]) -> None:
    def shell(line: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", line, *CONVSCOPE, "predict"]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=START_SECONDS
        )

    full = shell(f'exec "$0" "$@" {images[0]} > /dev/full')
    assert (full.returncode, full.stderr) == (1, "Error: No space left on device\n")
    closed = shell('exec "$0" "$@" - <&-')
    assert (closed.returncode, closed.stdout) == (1, "-: error: standard input is closed\n")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pattern", ["p*", "**"])
def test_pipe_that_matches_a_pattern_is_not_waited_for(folder: Path, pattern: str) -> None:
    result = run("predict", folder / pattern)
    assert f"{folder}/pipe: error: not a regular file" in result.stdout.splitlines()


def test_linked_folders_are_read_once_and_none_above(folder: Path, picture: Picture) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "o.png").write_bytes(picture("red"))
    for place, target in (("linked", other), ("again", other), ("more/up", "..")):
        (folder / place).symlink_to(target)
    (folder / "more" / "root").symlink_to("/")
    rows = csv.DictReader(io.StringIO(run("predict", folder, "--csv").stdout))
    found = [(row["file"].removeprefix(f"{folder}/"), row["label"]) for row in rows]
    assert [name for name, label in found if label] == [
        "b.png",
        "z.png",
        "again/o.png",
        "more/a.png",
    ]
    assert found[-1] == ("more/root", "")


def test_predict_says_that_a_folder_or_a_pattern_holds_nothing(folder: Path) -> None:
    result = run("predict", folder / "empty", folder / "*.jpg")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{folder / 'empty'}: error: holds no files",
        f"{folder / '*.jpg'}: error: No such file or directory",
    ]


def test_predict_names_a_folder_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every folder, so the system's refusal is a double."""
    read = os.scandir

    def refuse(place: str) -> Any:
        if place == f"{folder}/more":
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return read(place)

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("predict", folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == f"{folder}/more: error: Permission denied"


def test_predict_holds_one_batch_of_a_folder_in_memory(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_MAX_BATCH", "2")
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture("red"))
    settings = read_settings()
    artifact = read_store(settings.store, (), settings.default_model).default
    reader = FileReader(artifact, settings, Classes(artifact, settings, Options(top_k=1)))
    rows = reader.rows(find_files([str(tmp_path)]))
    next(rows)
    (tmp_path / "c.png").write_bytes(picture("blue"))
    assert [row.label for row in rows if isinstance(row, Prediction)] == ["red", "blue", "red"]


def test_names_of_files_cannot_steer_the_terminal(tmp_path: Path, picture: Picture) -> None:
    name = os.fsdecode(b"\x1b[2J\n\xff gr\xc3\xbcn.png")
    (tmp_path / name).write_bytes(picture("green"))
    text = run("predict", tmp_path)
    assert text.stdout.startswith(f"{tmp_path}/\\x1b[2J\\n\\xff grün.png: green")
    (row,) = json.loads(run("predict", tmp_path, "--json").stdout)["predictions"]
    assert row["filename"] == f"{tmp_path}/\x1b[2J\n\\xff grün.png"


@pytest.fixture
def terminal() -> Iterator[tuple[int, BinaryIO]]:
    """Both ends of a terminal: a file descriptor to read, and a file for a process."""
    outer, inner = pty.openpty()
    with os.fdopen(inner, "wb") as end:
        yield outer, end
    os.close(outer)


def test_folder_shows_its_progress_on_a_terminal_alone(
    folder: Path, terminal: tuple[int, BinaryIO]
) -> None:
    command = [*CONVSCOPE, "predict", str(folder)]
    quiet = subprocess.run(command, capture_output=True, check=False, timeout=START_SECONDS)
    assert quiet.stderr == b""
    outer, end = terminal
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=end, check=False, timeout=START_SECONDS
    )
    shown = os.read(outer, 1 << 16).decode()
    assert "5/5" in shown
    assert "\x1b[K" not in shown
    assert done.stdout == quiet.stdout


def test_rows_take_the_place_of_the_progress_on_their_terminal(
    folder: Path, terminal: tuple[int, BinaryIO]
) -> None:
    outer, end = terminal
    command = [*CONVSCOPE, "predict", str(folder)]
    subprocess.run(command, stdout=end, stderr=end, check=False, timeout=START_SECONDS)
    shown = os.read(outer, 1 << 16).decode()
    assert f"0/5\r\x1b[K{folder}/b.png: blue" in shown


def test_predict_computes_many_images_in_batches(
    images: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSCOPE_MAX_BATCH", "2")
    result = run("predict", *images, *images, images[0])
    labels = [line.partition(": ")[2].split()[0] for line in result.stdout.splitlines()]
    assert labels == ["red", "blue", "red", "blue", "red"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["predict", "x.png", "--model", "vgg"], 1, "no model 'vgg'; there are: colour, flat"),
        (["predict", "x.png", "--model", "colour/3"], 1, "no version '3' of colour; there are: 1"),
        (["predict", "x", "--model", "colour/1", "--version", "2"], 2, "name two versions"),
        (["predict", "x.png", "--json", "--csv"], 2, "--json and --csv: only one can be printed"),
        (["predict", "x.png", "--top-k", "9"], 1, "top_k=9: the limit is the model's 6 classes"),
        (["predict", "x.png", "--top-k", "0"], 2, "'--top-k'"),
        (["predict", "x", "--coverage", "nan"], 2, "'--coverage': nan is not a number"),
        (["predict"], 2, "Missing argument"),
        (["serve", "--port", "0"], 2, "'--port'"),
        (["serve", "--workers", "0"], 2, "'--workers'"),
        (["bake"], 2, "No such command"),
    ],
)
def test_wrong_usage_is_said_without_a_traceback(
    arguments: list[str], status: int, message: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == status
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_models_are_listed_with_the_default() -> None:
    result = run("models")
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header[:3] == ["MODEL", "TASK", "ARCHITECTURE"]
    assert rows == [
        ["colour/1", "classification", "mean-colour", "18", "83.33%"],
        ["colour/2", "classification", "mean-colour", "18", "83.33%", "default"],
        ["flat/1", "classification", "mean-colour", "18", "83.33%"],
    ]


def test_detectors_are_listed_with_their_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_detector(tmp_path)
    write_artifact(tmp_path, "colour", "1")
    monkeypatch.setenv("CONVSCOPE_STORE", str(tmp_path))
    _, *rows = [line.split() for line in run("models").stdout.splitlines()]
    assert rows == [
        ["colour/1", "classification", "mean-colour", "18", "83.33%", "default"],
        ["finder/1", "detection", "white-rectangle", "0", "mAP", "60.0%", "default"],
    ]


def test_segmenters_are_listed_with_their_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_segmenter(tmp_path)
    write_artifact(tmp_path, "colour", "1")
    monkeypatch.setenv("CONVSCOPE_STORE", str(tmp_path))
    _, row, _ = [line.split() for line in run("models").stdout.splitlines()]
    assert row[:2] == ["cells/1", "segmentation"]
    assert row[4:6] == ["IoU", f"{artifact.segmenter.test.iou:.1%}"]


def test_models_are_listed_as_json() -> None:
    models = json.loads(run("models", "--json").stdout)["models"]
    assert [(model["name"], model["default"]) for model in models] == [
        ("colour", False),
        ("colour", True),
        ("flat", False),
    ]


def test_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_THREADS", "0")
    for command in (["models"], ["serve"], ["predict", "x"]):
        result = run(*command)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: CONVSCOPE_THREADS=0: ")


def test_error_with_a_strange_path_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", os.fsdecode(b"/no\n\x1b[2J\xff"))
    (line,) = run("models").stderr.splitlines()
    assert line.startswith(r"Error: /no\n\x1b[2J\xff: no such directory")


def test_damaged_model_is_one_line(
    images: Sequence[Path], store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_store(store_path, tmp_path / "store")
    (store / "colour" / "2" / "model.onnx").write_bytes(b"x")
    monkeypatch.setenv("CONVSCOPE_STORE", str(store))
    result = run("predict", images[0])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "model.onnx: holds 1 bytes; manifest.json says" in line
