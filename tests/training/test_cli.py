import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from app.artifact.directory import Artifact
from app.artifact.files import EVALUATION
from tests.support.scene_folders import write_scene_folder
from training.cli import main
from training.run.checkpoint import Checkpoint, EpochFigures, newest, open_run
from training.run.progress import watch


def _run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def _fail(*arguments: str | Path) -> str:
    """Run a command that must fail; return its one line."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # no other error left the command
    [line] = result.stderr.splitlines()
    return line


def test_data_says_what_was_found(image_folder: Path) -> None:
    output = _run("data", "--data-dir", image_folder)
    assert "240 training images in 10 classes: airplane" in output.replace("\n", " ")


@pytest.fixture
def with_faults(image_folder: Path, tmp_path: Path) -> Path:
    """Class folders, with a text file and 30 dangling links."""
    folder = shutil.copytree(image_folder / "train", tmp_path / "pictures")
    (folder / "cat" / "notes.txt").write_text("no image")
    for number in range(30):
        (folder / "truck" / f"{number}.png").symlink_to(folder / "nowhere")
    return folder


def test_a_training_begins_with_what_was_found_and_what_is_left_out(
    with_faults: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("--data-dir", with_faults, "--epochs", "1", "--holdout", "0.2")
    output = _run("train", "fc", "--out", run, *options)
    table = output[: output.index("epoch 1/1")]
    rows = [line.split() for line in table.splitlines()]
    assert "training images   held out   test images" in table
    assert ["airplane", "19", "4", "5", "-"] in rows
    assert ["cat", "19", "4", "5", "1"] in rows
    assert ["truck", "19", "4", "5", "30"] in rows
    assert ["cat/notes.txt:", "not", "an", "image"] in [row[:4] for row in rows]
    assert table.count("is a link to nothing") == 19
    assert "and 11 more" in table
    assert max(map(len, table.splitlines()[1:])) <= 120  # which a pipe is taken for
    assert "50 test images" in _run("evaluate", run)


def test_strict_refuses_what_is_left_out_before_a_run_is_made(
    with_faults: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    message = f"Error: {with_faults}: 31 files are left out, and --strict allows none"
    assert _fail("data", "--data-dir", with_faults, "--strict") == message
    options = ("--data-dir", with_faults, "--out", run, "--strict")
    assert _fail("train", "fc", *options, "--epochs", "1") == message
    assert not run.exists()


def test_a_training_begins_with_the_number_of_test_images_that_it_learns_from(
    image_folder: Path, tmp_path: Path
) -> None:
    assert "too high" not in _run("data", "--data-dir", image_folder)
    folder = shutil.copytree(image_folder, tmp_path / "pictures")
    shutil.copytree(folder / "train" / "cat", folder / "test" / "cat" / "again")
    said = "24 test images have the pixels of a training image, so the accuracy will look too high"
    assert said in _run("data", "--data-dir", folder).splitlines()


def test_strict_takes_a_folder_of_which_nothing_is_left_out(image_folder: Path) -> None:
    output = _run("data", "--data-dir", image_folder, "--strict")
    assert "240 training images" in output
    assert ["airplane", "24", "8", "-"] in [line.split() for line in output.splitlines()]


def _annotated(place: Path, **splits: int) -> Path:
    write_scene_folder(place, **{"train": 6, "val": 0, "test": 2} | splits)
    if not splits.get("val"):
        (place / "val.json").unlink()
    return place


TINY = ("--height", "64", "--width", "96", "--epochs", "1")


def test_a_detectors_training_tells_what_it_holds_out_and_what_it_scores(tmp_path: Path) -> None:
    folder = _annotated(tmp_path / "set")
    output = _run(
        "train", "yolo", "--data-dir", folder, "--out", tmp_path / "run", *TINY, "--holdout", "0.34"
    )
    rows = [line.split() for line in output.splitlines()]
    assert ["class", "train", "held", "out", "test"] in rows
    assert ["all", "pictures", "4", "2", "2"] in rows
    counts = [[int(cell) for cell in row[1:]] for row in rows if row[:1] in (["red"], ["blue"])]
    assert [sum(column) for column in zip(*counts, strict=True)] == [8, 4, 4]
    [epoch] = [line for line in output.splitlines() if line.startswith("epoch 1/1")]
    assert re.search(r"loss [0-9.]+  held out mAP at IoU 0\.5 [0-9.]+%  [0-9]+ images/s", epoch)
    *stages, exported = _run("export", tmp_path / "run", "--store", tmp_path / "s").splitlines()
    assert stages == [
        "measuring on the held-out and the test pictures",
        "writing the graphs",
        "checking the graphs on the test pictures",
    ]
    assert exported.startswith(f"exported: {tmp_path}/s/yolo/1 (mAP ")
    output = _run("data", "--data-dir", folder)
    assert ["class", "train", "test"] in [line.split() for line in output.splitlines()]


def test_classes_of_masks_are_counted_by_picture(tmp_path: Path) -> None:
    for number in range(3):
        for name, mode in (("images", "RGB"), ("labels", "P")):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new(mode, (32, 32), 1 if mode == "P" else number).save(path)
    output = _run("data", "--data-dir", tmp_path)
    assert "Pictures by class" in output
    assert "Objects" not in output


def test_each_of_several_faults_of_a_folder_is_a_line(tmp_path: Path) -> None:
    folder = _annotated(tmp_path / "set")
    (folder / "train.json").write_text("{}")
    result = CliRunner().invoke(main, ["data", "--data-dir", str(folder)])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Error: {folder}: cannot be trained on:",
        *(f"  train.json: has no {name}" for name in ("images", "annotations", "categories")),
    ]


def test_a_set_of_which_an_object_has_no_mask_teaches_no_masks_and_says_why(
    tmp_path: Path,
) -> None:
    folder = _annotated(tmp_path / "set")
    tree = json.loads((folder / "train.json").read_text())
    del tree["annotations"][2]["segmentation"]
    (folder / "train.json").write_text(json.dumps(tree))
    line = _fail("train", "unet", "--data-dir", folder, "--out", tmp_path / "run", *TINY)
    assert line == (
        f"Error: {folder}: is annotated for detection; unet learns segmentation, but 1 of 16 "
        "objects has a box and no mask: annotation 3 of images/train-1.png"
    )


def test_a_size_that_does_not_fit_is_refused_before_pictures_are_read(tmp_path: Path) -> None:
    options = ("--data-dir", tmp_path / "nowhere", "--height", "100")
    assert _fail("train", "yolo", *options) == "Error: height is 100; yolo takes multiples of 16"


def test_strict_counts_annotations_too(tmp_path: Path) -> None:
    folder = _annotated(tmp_path / "set")
    tree = json.loads((folder / "train.json").read_text())
    for annotation in tree["annotations"][:2]:
        annotation["image_id"] = 77
    (folder / "train.json").write_text(json.dumps(tree))
    assert _fail("data", "--data-dir", folder, "--strict") == (
        f"Error: {folder}: 2 pictures, masks or annotations are left out, and --strict allows none"
    )


def test_only_a_network_with_skips_can_be_without_them() -> None:
    result = CliRunner().invoke(main, ["train", "yolo", "--no-skips"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: --no-skips is for unet"


@pytest.mark.slow
def test_a_training_that_is_interrupted_says_how_to_go_on(
    image_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    places = ["--data-dir", str(image_folder), "--out", str(run), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.cli", "train", "fc", *places, "--epochs", "10000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while newest(run) is None:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    [line] = said.splitlines()
    assert line == f"Error: interrupted; {run} has all finished epochs: continue with --resume"


def test_every_field_of_a_recipe_is_an_option(image_folder: Path, tmp_path: Path) -> None:
    given = {
        "architecture": "speednet-proxy",
        "epochs": 1,
        "batch-size": 60,
        "micro-batch": 30,
        "optimizer": "muon",
        "learning-rate": 0.01,
        "bias-learning-rate": 0.001,
        "head-learning-rate": 0.002,
        "weight-decay": 0.1,
        "schedule": "one-cycle",
        "label-smoothing": 0.2,
        "dropout": 0.3,
        "flip": "random",
        "translate": 2,
        "crop": 28,
        "cropped": 0.5,
        "cutout": 4,
        "brightness": 0.1,
        "contrast": 0.2,
        "noise": 9.0,
        "degraded": 0.4,
        "height": 0,
        "width": 0,
        "turn": False,
        "smallest": 1.0,
        "largest": 1.0,
        "mosaic": 0.0,
        "colour": 0.0,
        "start": "",
        "start-part": 0.0,
        "teacher": "",
        "proxy": "speednet-proxy",
        "selected": 0.5,
        "holdout": 0.2,
        "split-seed": 5,
        "seed": 7,
        "precision": "float32",
    }
    for run, start in (("first", ""), ("second", str(tmp_path / "first"))):
        given |= {"start": start, "start-part": 0.25 if start else 0.0, "teacher": start}
        given |= {"label-smoothing": 0.0, "averaged": 0.0} if start else {"averaged": 0.9}
        valued = [(name, value) for name, value in given.items() if name != "turn"]
        words = [word for name, value in valued for word in (f"--{name}", str(value))]
        options = ["--no-turn", *words]
        place = tmp_path / run
        output = _run("train", "fc", "--data-dir", image_folder, "--out", place, *options)
        assert "epoch 1/1  loss" in output
        assert "starts anew" not in output
        recipe = open_run(place).state.recipe
        values = {name.replace("_", "-"): value for name, value in recipe.model_dump().items()}
        assert values == given


def test_a_run_says_that_its_last_layer_starts_anew(
    exported: Artifact, image_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(image_folder, tmp_path / "pictures"))
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "lynx")
    store = Path(shutil.copytree(exported.path.parents[1], tmp_path / "\x1b[31mred"))
    options = ("--epochs", "1", "--precision", "float32", "--start", store / "tiny" / "1")
    places = ("--data-dir", folder, "--out", tmp_path / "run")
    output = _run("train", "simple-cnn", *places, *options)
    line = "red/tiny/1 has other classes than pictures; new layers: fc2\n"
    assert f"{tmp_path}/\\x1b[31m{line}" in output[: output.index("epoch 1/1")]


def test_a_run_leaves_its_history_and_its_learning_curve(trained: Checkpoint) -> None:
    run = trained.path.parent
    assert {"history.json", "learning_curve.png"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "resnet99"], "Error: no recipe 'resnet99'; there are simple-cnn, fc"),
        (["describe", "lenet"], "Error: no architecture 'lenet'; there are simple-cnn, fc"),
        (["train", "fc", "--epochs", "0"], "Error: epochs is 0; it can be 1 to 10000"),
        (
            ["train", "speednet", "--crop", "0"],
            "Error: crop is 0 and cropped is 0.7; both are 0 or neither",
        ),
        (["evaluate", "nowhere"], "Error: nowhere: holds no checkpoint"),
        (["evaluate", "no\nwhere"], r"Error: no\nwhere: holds no checkpoint"),
        (["export", "nowhere"], "Error: nowhere: holds no checkpoint"),
        (["compare", "--store", "nowhere"], "Error: nowhere: holds no artifact"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], message: str) -> None:
    assert _fail(*arguments).startswith(message)


def test_a_mistyped_variable_is_refused_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVSCOPE_DATADIR", "my-images")
    assert _fail("data") == (
        "Error: CONVSCOPE_DATADIR: there is no such setting; did you mean CONVSCOPE_DATA_DIR?"
    )


def test_a_process_ends_with_one_line_and_status_1() -> None:
    command = [sys.executable, "-m", "training.cli", "evaluate", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: nowhere: holds no checkpoint\n"


def test_a_crop_that_does_not_fit_the_network_is_refused(
    image_folder: Path, tmp_path: Path
) -> None:
    options = ("--crop", "28", "--cropped", "0.5", "--out", tmp_path / "run")
    line = _fail("train", "simple-cnn", "--data-dir", image_folder, *options)
    assert line == "Error: crop is 28; simple-cnn cannot take that"
    assert not (tmp_path / "run").exists()


def test_a_run_in_the_way_is_said_in_one_line(trained: Checkpoint, image_folder: Path) -> None:
    run = trained.path.parent
    line = _fail("train", "fc", "--data-dir", image_folder, "--out", run)
    assert line == f"Error: {run}: holds a run already; go on with --resume or choose another --out"


def test_describe_prints_the_layers_and_their_sum() -> None:
    output = _run("describe", "fc")
    assert "Linear 3072→256" in output
    assert "820,874" in output


def test_on_a_terminal_a_bar_shows_the_epoch_and_leaves_a_line() -> None:
    from rich.console import Console

    with (Path(os.devnull)).open("w") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=120, record=True)
        with watch(console) as reporter:
            reporter.told("a line")
            reporter.epoch_started(2, 3, 1000)
            reporter.progressed(500, 1.25, 0.5)
            reporter.epoch_ended(EpochFigures(2, 1.2, 0.55, 0.5, 2000, 0.5))
        text = console.export_text()
    assert "a line\n" in text
    assert "epoch 2/3" in text
    assert "50%" in text
    assert "left" in text
    assert "loss 1.2000  train 55.00%  held out 50.00%  2,000 images/s" in text


def test_names_are_shown_as_they_are(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[old] pictures[/b]"
    shutil.copytree(image_folder, folder)
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "[other]")
    output = _run("data", "--data-dir", folder)
    assert output.replace("\n", "").count(str(folder)) == 1
    assert f"\n{folder}, sha256" in output
    assert "[other]" in output


def test_names_that_cannot_be_printed_are_escaped(image_folder: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(image_folder, folder)
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "\x1b[31mcat")
    output = _run("train", "fc", "--data-dir", folder, "--out", tmp_path / "run", "--epochs", "1")
    assert output.startswith(f"fc on {tmp_path}/caf\\xe9 → ")
    assert "\\x1b[31mcat" in output
    assert "240 training images" in _run("data", "--data-dir", folder)
    assert "80 test images" in _run("evaluate", tmp_path / "run")


def test_names_that_cannot_be_printed_are_escaped_in_every_table(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "pictures")
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "a|b\n\x1b[31mc")
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\n\xff"))
    output = _run("train", "fc", "--data-dir", folder, "--out", run, "--epochs", "1")
    assert f"→ {tmp_path}/run\\n\\xff\n" in output
    assert f"done: {tmp_path}/run\\n\\xff/epoch-00001\n" in output
    assert r"a|b\n\x1b[31mc" in _run("evaluate", run)
    output = _run("export", run, "--store", tmp_path / "\x1b")
    assert rf"exported: {tmp_path}/\x1b/fc/1" in output
    out = tmp_path / "\x1b[2J"
    output = _run("compare", "--store", tmp_path / "\x1b", "--data-dir", folder, "--out", out)
    assert rf"written: {tmp_path}/\x1b[2J" in output
    assert "\x1b" not in output
    rows = [line for line in (out / "comparison.md").read_text().splitlines() if r"a\|b\n" in line]
    assert len(rows) == 1
    assert rows[0].endswith(" |")


def test_letters_that_the_terminal_lacks_are_escaped(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "猫"
    shutil.copytree(image_folder, folder)
    command = [sys.executable, "-m", "training.cli", "data", "--data-dir", str(folder)]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=True, env=environment
    )
    assert rf"{tmp_path}/\u732b, sha256" in done.stdout


def test_figures_are_shown_where_they_cannot_be_kept(trained: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.path.parent, run)
    (run / "epoch-00002" / EVALUATION).unlink()
    (run / "epoch-00002" / EVALUATION).mkdir()
    result = CliRunner().invoke(main, ["evaluate", str(run)])
    assert result.exit_code == 1
    assert "80 test images, temperature" in result.output
    assert "evaluation.json: cannot be written" in result.output


def test_an_export_that_is_refused_costs_no_evaluation(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(*_: object) -> None:
        raise AssertionError("the run was evaluated")

    monkeypatch.setattr("training.cli.evaluate.evaluate", evaluated)
    arguments = ["export", str(trained.path.parent), "--views", "2", "--store", str(tmp_path)]
    line = _fail(*arguments, "--name", "No\nName")
    assert line.startswith(r"Error: No\nName/1: 'No\nName' is not a name: 1 to 64 of a-z")


@pytest.mark.parametrize(
    ("holdout", "said"),
    [
        ("0", ["no images were held out: the model has no sets and no warnings"]),
        (
            "0.1",
            [
                "20 held-out images decide the thresholds: warnings are coarse, and sets of more "
                "than 95% hold every class; 99 are enough for sets of 99%, and 230 of each class "
                "for class-conditional ones"
            ],
        ),
        ("0.5", []),
    ],
)
def test_an_export_says_what_few_held_out_images_mean(
    holdout: str, said: list[str], image_folder: Path, tmp_path: Path
) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    options = ("--epochs", "1", "--holdout", holdout, "--out", run)
    _run("train", "fc", "--data-dir", image_folder, *options)
    measuring, writing, checking, exported, *lines = _run(
        "export", run, "--store", store
    ).splitlines()
    assert (measuring, writing, checking) == (
        "measuring on the held-out and the test images",
        "writing the graphs",
        "checking the graphs on the test images",
    )
    assert exported.startswith(f"exported: {store}/fc/1 (")
    assert lines == said


def test_a_run_whose_images_are_gone_downloads_nothing(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.path.parent, run)
    state = run / "epoch-00002" / "state.json"
    values = json.loads(state.read_text()) | {"data_place": str(tmp_path / "gone")}
    state.write_text(json.dumps(values))
    monkeypatch.delenv("CONVSCOPE_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert _fail("evaluate", run) == (
        f"Error: {tmp_path}/gone: no such folder, and {state.parent} learned from the images in "
        "it; --data-dir names the folder where they are now"
    )


def test_corruptions_lists_every_model_and_corruption(
    exported: Artifact, image_folder: Path
) -> None:
    output = _run("corruptions", exported.path, "--data-dir", image_folder)
    assert "80 test images: right" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["tiny/1", "is", "done"] in lines
    assert sum(line[:1] == ["JPEG"] for line in lines) == 3
    [clean] = [line for line in lines if line[:1] == ["clean"]]
    assert clean[1] == f"{exported.classifier.test.accuracy:.0%},"
    assert "mean of the corrupted" in output
