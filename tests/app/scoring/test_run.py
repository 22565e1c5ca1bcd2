import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from app.artifact.directory import Artifact
from app.cli import main
from app.errors import ScoringError
from app.machine import usable_cpus
from app.scoring import sources
from app.scoring.run import IN_HAND, Job, Outcome, on_this_machine, run, score
from app.scoring.sources import Shard
from app.settings import Settings
from tests.conftest import MakeSettings, Picture
from tests.support.artifacts import CLASSES, write_artifact
from tests.support.detectors import write_detector
from tests.support.segmenters import write_segmenter
from tests.support.servers import CONVSCOPE, START_SECONDS, environment, runs, wait_until

NOT_AN_IMAGE = "not an image in a known format"


def in_this_process(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
    """An engine without processes, which take seconds to start."""
    for shard in shards:
        yield shard.number, score(job, shard)


def quiet(_pictures: int, _total: int | None) -> None:
    pass


@pytest.fixture
def job(make_settings: MakeSettings, store_path: Path) -> Job:
    return Job(store_path / "colour" / "2", make_settings())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "colours.parquet"


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Red, green, blue and so on, and a text file that comes last."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number, label in enumerate(CLASSES):
        (path / f"{number}.png").write_bytes(picture(label))
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHARD_PICTURES", 2)


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(out).to_pylist()
    assert [row["picture"] for row in rows] == list(range(len(rows)))
    return list(rows)


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.parent.iterdir() if path != out]


@pytest.mark.usefixtures("_small_shards")
def test_each_picture_has_a_row_in_the_order_of_the_input(
    job: Job, folder: Path, out: Path
) -> None:
    assert run([str(folder)], out, job, in_this_process, quiet) == Outcome(7, 1)
    *rows, broken = rows_of(out)
    assert [row["label"] for row in rows] == list(CLASSES)
    assert rows[0]["file"] == str(folder / "0.png")
    assert max(dict(rows[0]["probabilities"]).items(), key=lambda item: item[1])[0] == "red"
    assert broken["file"] == str(folder / "notes.txt")
    assert broken["error"].startswith(NOT_AN_IMAGE)
    assert broken["label"] is None
    assert leftovers(out) == []


def test_the_file_says_which_model_answered(job: Job, folder: Path, out: Path) -> None:
    run([str(folder)], out, job, in_this_process, quiet)
    said = json.loads(pq.read_schema(out).metadata[b"convscope"])
    assert said["model"] == "colour/2"


def make_archive(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files:
                archive.writestr(name, data)
    elif path.suffix == ".parquet":
        cells = [{"bytes": data, "path": name} for name, data in files]
        pq.write_table(pa.table({"image": cells}), path)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz", "parquet"])
def test_the_rows_of_an_archive_are_those_of_the_folder(
    job: Job, folder: Path, out: Path, tmp_path: Path, suffix: str
) -> None:
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    archive = make_archive(tmp_path / f"pictures.{suffix}", files)
    run([str(archive)], out, job, in_this_process, quiet)
    other = out.with_name("folder.parquet")
    run([str(folder)], other, job, in_this_process, quiet)
    apart = {"archive": None, "file": None}
    rows = rows_of(out)
    assert [row | apart for row in rows] == [row | apart for row in rows_of(other)]
    assert {row["archive"] for row in rows} == {str(archive)}
    assert [row["file"] for row in rows] == [name for name, _ in files]


@pytest.mark.usefixtures("_small_shards")
def test_a_uri_is_read_by_a_file_system_of_pyarrow(job: Job, folder: Path, out: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    make_archive(folder / "more.zip", [("red.png", (folder / "0.png").read_bytes())])
    outcome = run([f"file://{folder}"], out, job, in_this_process, quiet)
    assert outcome == Outcome(8, 1)
    rows = rows_of(out)
    assert [row["label"] for row in rows] == [*CLASSES, "red", None]
    assert rows[0]["file"] == f"file://{folder}/0.png"
    assert (rows[6]["archive"], rows[6]["file"]) == (f"file://{folder}/more.zip", "red.png")


@pytest.mark.usefixtures("_small_shards")
def test_what_stands_before_the_damage_is_scored(
    job: Job, folder: Path, out: Path, tmp_path: Path
) -> None:
    red = (folder / "0.png").read_bytes()
    path = make_archive(tmp_path / "a.tar", [(f"{number}.png", red) for number in range(5)])
    path.write_bytes(path.read_bytes()[:3000])
    assert run([str(path), str(folder / "1.png")], out, job, in_this_process, quiet).failures == 1
    rows = rows_of(out)
    assert [row["label"] for row in rows] == ["red", "red", "red", None, "green"]
    assert (rows[3]["file"], rows[3]["archive"]) == (str(path), None)
    assert rows[3]["error"].startswith("damaged at byte 3000 of the tar, after 3 files: ")


def test_limits_are_those_of_the_service(
    make_settings: MakeSettings, store_path: Path, tmp_path: Path, out: Path, picture: Picture
) -> None:
    settings = make_settings(max_body_bytes=2048, max_pixels=2048, max_pixels_whole=2048)
    large = tmp_path / "bytes.png"
    large.write_bytes(os.urandom(3000))
    wide = tmp_path / "pixels.png"
    wide.write_bytes(picture("red", size=(64, 64)))
    archive = make_archive(
        tmp_path / "a.zip", [(path.name, path.read_bytes()) for path in (large, wide)]
    )
    job = Job(store_path / "colour" / "2", settings)
    run([str(large), str(wide), str(archive)], out, job, in_this_process, quiet)
    bytes_error = "holds more than 2048 bytes; CONVSCOPE_MAX_BODY_BYTES is the limit"
    first, second, *inside = rows_of(out)
    assert first["error"] == inside[0]["error"] == bytes_error
    assert "64x64" in second["error"]
    assert second["error"] == inside[1]["error"]


class Stopped(Exception):
    pass


def stop_after(parts: int) -> Any:
    """Return an engine that ends with an error."""

    def engine(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
        for done, result in enumerate(in_this_process(job, shards)):
            if done == parts:
                raise Stopped
            yield result

    return engine


def recorded(scored: list[int]) -> Any:
    def engine(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
        for number, table in in_this_process(job, shards):
            scored.append(number)
            yield number, table

    return engine


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".parquet"])
def test_a_run_goes_on_with_what_is_missing(
    job: Job, folder: Path, out: Path, tmp_path: Path, suffix: str
) -> None:
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    word = str(make_archive(tmp_path / f"a{suffix}", files) if suffix else folder)
    with pytest.raises(Stopped):
        run([word], out, job, stop_after(2), quiet)
    assert not out.exists()
    scored: list[int] = []
    told: list[int] = []
    outcome = run([word], out, job, recorded(scored), lambda pictures, _: told.append(pictures))
    assert scored == [2, 3]
    assert told == [4, 6, 7]
    assert outcome == Outcome(7, 1)
    assert [row["label"] for row in rows_of(out)] == [*CLASSES, None]
    assert leftovers(out) == []


@pytest.fixture
def begun(job: Job, folder: Path, out: Path, _small_shards: None) -> Path:
    with pytest.raises(Stopped):
        run([str(folder)], out, job, stop_after(2), quiet)
    return out.with_name("colours.parquet.parts")


def test_a_run_does_not_go_on_with_another_model(
    begun: Path, job: Job, store_path: Path, folder: Path, out: Path
) -> None:
    other = Job(store_path / "colour" / "1", job.settings)
    with pytest.raises(
        ScoringError, match="begun with model colour/2; now it is colour/1"
    ) as error:
        run([str(folder)], out, other, in_this_process, quiet)
    assert str(begun) in str(error.value)
    assert run([str(folder)], out, job, in_this_process, quiet) == Outcome(7, 1)


def test_a_run_does_not_go_on_with_a_model_that_was_made_anew_or_other_settings(
    begun: Path, job: Job, folder: Path, out: Path, tmp_path: Path, make_settings: MakeSettings
) -> None:
    anew = write_artifact(tmp_path / "anew", "colour", "2", convolutions=False)
    with pytest.raises(ScoringError, match="begun with manifest_sha256"):
        run([str(folder)], out, Job(anew.path, job.settings), in_this_process, quiet)
    other = Job(job.model, make_settings(max_pixels=2048))
    with pytest.raises(ScoringError, match="begun with max_pixels 40000000; now it is 2048"):
        run([str(folder)], out, other, in_this_process, quiet)
    assert begun.exists()


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("change", ["add", "write", "other"])
def test_a_run_does_not_go_on_with_other_input(
    job: Job, folder: Path, out: Path, change: str
) -> None:
    word = str(folder)
    if change == "add":
        (folder / "9.png").write_bytes(b"")
    elif change == "write":
        (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    else:
        word = str(folder / "0.png")
    with pytest.raises(ScoringError, match="begun with other input: files were added, removed"):
        run([word], out, job, in_this_process, quiet)


def test_results_are_not_overwritten(job: Job, folder: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"of an earlier run")
    with pytest.raises(ScoringError, match="is already there"):
        run([str(folder)], out, job, in_this_process, quiet)
    assert out.read_bytes() == b"of an earlier run"
    assert leftovers(out) == []


def test_an_input_that_is_not_there_leaves_nothing_behind(job: Job, out: Path) -> None:
    with pytest.raises(ScoringError, match="/no/such/folder: no such file or folder"):
        run(["/no/such/folder"], out, job, in_this_process, quiet)
    with pytest.raises(ScoringError, match="nfs://…: Unrecognized filesystem type in URI"):
        run(["nfs://secret@place/x"], out, job, in_this_process, quiet)
    with pytest.raises(ScoringError, match="file:///no/such: no such file or folder"):
        run(["file:///no/such"], out, job, in_this_process, quiet)
    assert leftovers(out) == []


def test_two_runs_do_not_write_one_file(
    begun: Path, store_path: Path, folder: Path, out: Path
) -> None:
    code = (
        f"from app.machine import lock; file = open({str(begun / 'lock')!r}, 'w'); "
        "print(lock(file), flush=True); input()"
    )
    with subprocess.Popen(
        [*CONVSCOPE[:2], code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        settings = Settings(store=store_path)
        with pytest.raises(ScoringError, match="another process writes it"):
            run(
                [str(folder)],
                out,
                Job(store_path / "colour" / "2", settings),
                in_this_process,
                quiet,
            )
        other.communicate(b"\n")


@pytest.mark.usefixtures("_small_shards")
def test_results_within_the_input_are_no_part_of_it(job: Job, folder: Path) -> None:
    out = folder / "results.parquet"
    with pytest.raises(Stopped):
        run([str(folder)], out, job, stop_after(2), quiet)
    assert run([str(folder)], out, job, in_this_process, quiet) == Outcome(7, 1)


def test_names_that_are_not_utf8_are_escaped(job: Job, tmp_path: Path, out: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "\udcfe.png").write_bytes(b"")
    make_archive(folder / "a.tar", [("\udcfd.png", b"")])
    run([str(folder)], out, job, in_this_process, quiet)
    inside, beside = rows_of(out)
    assert (inside["archive"], inside["file"]) == (f"{tmp_path}/\\xff/a.tar", "\\xfd.png")
    assert beside["file"] == f"{tmp_path}/\\xff/\\xfe.png"


@pytest.mark.usefixtures("_small_shards")
def test_a_process_that_is_killed_ends_the_run_which_can_go_on(
    job: Job, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.scoring.run.IN_HAND", 1)
    monkeypatch.setattr("app.scoring.run.usable_cpus", lambda: 1)

    def engine(job: Job, shards: Iterable[Shard]) -> Iterator[tuple[int, pa.Table]]:
        for result in on_this_machine(job, shards):
            for process in multiprocessing.active_children():
                process.kill()
            yield result

    with pytest.raises(ScoringError, match="was killed, perhaps for its memory"):
        run([str(folder)], out, job, engine, quiet)
    assert not out.exists()
    scored: list[int] = []
    assert run([str(folder)], out, job, recorded(scored), quiet) == Outcome(7, 1)
    assert scored == [1, 2, 3]


def test_an_empty_archive_has_no_rows(job: Job, out: Path, tmp_path: Path) -> None:
    run([str(make_archive(tmp_path / "a.zip", []))], out, job, in_this_process, quiet)
    assert rows_of(out) == []
    assert pq.read_schema(out).names[:4] == ["picture", "archive", "file", "label"]


def _white_on_black(path: Path) -> Path:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[10:20, 5:25] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("write", [write_detector, write_segmenter])
def test_detectors_and_segmenters_answer_as_the_service_does(
    write: Any, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact: Artifact = write(tmp_path / "store")
    path = _white_on_black(tmp_path / "white.png")
    job = Job(artifact.path, Settings(store=tmp_path / "store"))
    run([str(path), "/dev/null"], out, job, in_this_process, quiet)
    row, broken = rows_of(out)
    assert broken["error"]
    monkeypatch.setenv("CONVSCOPE_STORE", str(tmp_path / "store"))
    shown = json.loads(CliRunner().invoke(main, ["predict", "--json", str(path)]).stdout)
    if artifact.manifest.task == "detection":
        found = row["detections"]
    else:
        found = row["classes"] if row["instances"] is None else row["instances"]
    named = {"image_id": 1, "file_name": str(path)}
    assert shown == [named | {name: each[name] for name in each} for each in found]
    assert row["image"] == {"width": 64, "height": 48}


def test_few_shards_are_in_hand(job: Job, folder: Path) -> None:
    taken = count()
    shards = (Shard(n, n, [str(folder / "0.png")], [None]) for n in islice(taken, 100))
    results = on_this_machine(job, shards)
    _, table = next(results)
    results.close()  # type: ignore[attr-defined]  # of a generator
    assert table["label"].to_pylist() == ["red"]
    assert next(taken) <= (IN_HAND + 1) * usable_cpus() + 1


def command(*arguments: str | Path) -> list[str]:
    return [*CONVSCOPE, "score", *map(str, arguments)]


def test_a_run_that_is_killed_goes_on_with_one_row_a_picture(
    store_path: Path, tmp_path: Path, picture: Picture, out: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for label in CLASSES:
        (folder / f"{label}.png").write_bytes(picture(label))
    for number in range(8000):
        (folder / f"{number}.png").hardlink_to(folder / f"{CLASSES[number % 6]}.png")
    variables = environment(store_path)
    parts = out.with_name(f"{out.name}.parts")
    with subprocess.Popen(command(folder, "--out", out), env=variables) as process:
        wait_until(lambda: len([*parts.glob("*.parquet")]) >= 2, START_SECONDS)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    assert len(children) >= usable_cpus()
    wait_until(lambda: not any(runs(child.pid) for child in children))
    assert not out.exists()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(done) < 16
    again = subprocess.run(
        command(folder, "--out", out), env=variables, capture_output=True, text=True
    )
    assert again.returncode == 0
    assert again.stdout == f"{out}: 8,006 pictures\n"
    assert again.stderr.startswith(f"{len(done) * 512:,} of 8,006 pictures")
    rows = rows_of(out)
    assert len(rows) == len({row["file"] for row in rows}) == 8006
    labels = {row["file"]: row["label"] for row in rows}
    assert all(labels[str(folder / f"{n}.png")] == CLASSES[n % 6] for n in range(8000))
    assert leftovers(out) == []


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, store_path: Path, folder: Path, out: Path
) -> None:
    monkeypatch.setenv("CONVSCOPE_STORE", str(store_path))
    for name in ("app.scoring.run", "app.scoring.results", "app.scoring.on_ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    result = invoke(folder, "--out", out, "--engine", "ray" if package == "ray" else "local")
    extra = "ray" if package == "ray" else "score"
    assert result.exit_code == 1
    assert result.stderr == f"Error: {package} is not installed: pip install 'convscope[{extra}]'\n"
    assert not out.parent.exists()


def test_a_damaged_model_is_named(tmp_path: Path, folder: Path, out: Path) -> None:
    artifact = write_artifact(tmp_path / "store", "colour", "1")
    (artifact.path / "model.onnx").write_bytes(b"damaged")
    done = subprocess.run(
        command(folder, "--out", out),
        env=environment(tmp_path / "store"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "model.onnx: holds 7 bytes" in done.stderr
    assert "Traceback" not in done.stderr
