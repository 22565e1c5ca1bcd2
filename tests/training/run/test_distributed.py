import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support import gradient_worker
from tests.support.training_fixtures import TINY, train_quietly
from training.data.dataset import Source
from training.errors import Diverged, RunError
from training.run import distributed
from training.run.checkpoint import NETWORK, newest, open_run
from training.run.distributed import Workers

pytestmark = pytest.mark.slow  # each starts two processes that import torch

IMPORTABLE = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_two_processes_have_the_gradients_of_one_with_the_same_global_batch(
    image_folder: Path, tmp_path: Path, micro_batch: int
) -> None:
    gradient_worker.main(image_folder, tmp_path / "one", 0)
    worker = [gradient_worker.__file__, str(image_folder), str(tmp_path / "two"), str(micro_batch)]
    subprocess.run(
        [*TORCHRUN, *worker],
        check=True,
        capture_output=True,
        env=IMPORTABLE,
        timeout=120,
    )
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert (one.pop("images").item(), two.pop("images").item()) == (33, 17)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], rtol=1e-4, atol=1e-7), name


def _training(image_folder: Path, run: Path, epochs: int) -> list[str]:
    places = ["--data-dir", str(image_folder), "--out", str(run), "--device", "cpu"]
    options = ["--epochs", str(epochs), "--batch-size", "31", "--precision", "float32"]
    return [*TORCHRUN, "-m", "--", "training.cli", "train", "fc", *places, *options]


def test_a_killed_worker_ends_the_run_with_a_word_and_resume_goes_on(
    image_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        _training(image_folder, run, 40),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while newest(run) is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(_workers(process.pid)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "go on with --resume" in output
    done = open_run(run).state.epoch
    assert 1 <= done < 40
    resumed = subprocess.run(
        [*_training(image_folder, run, 40), "--resume"],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"epoch {done + 1:>2}/40" in resumed.stdout
    assert "epoch  1/40" not in resumed.stdout
    last = open_run(run).state
    assert last.epoch == 40
    assert last.hardware.startswith("2 × ")


def test_two_processes_start_and_are_taught_and_averaged_as_one(
    image_folder: Path, source: Source, tmp_path: Path
) -> None:
    recipe = TINY.replace(architecture="fc", batch_size=31, epochs=1)
    start, teacher = (
        str(train_quietly(recipe.replace(seed=seed), source, tmp_path / str(seed)).path.parent)
        for seed in (1, 2)
    )
    guided = recipe.replace(start=start, start_part=0.25, teacher=teacher)
    one = train_quietly(guided, source, tmp_path / "one")
    options = ["--start", start, "--start-part", "0.25", "--teacher", teacher]
    subprocess.run(
        [*_training(image_folder, tmp_path / "two", 1), *options],
        check=True,
        capture_output=True,
        timeout=240,
    )
    expected, found = one.read(NETWORK), open_run(tmp_path / "two").read(NETWORK)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-4), name


def _workers(launcher: int) -> list[int]:
    """Return the processes that torchrun has started, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        for variable in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"LOCAL_RANK="):
                ranks[int(variable[11:])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def test_a_batch_smaller_than_the_number_of_processes_is_refused(
    image_folder: Path, tmp_path: Path
) -> None:
    command = [*_training(image_folder, tmp_path / "run", 1), "--batch-size", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "batch_size is 1; 2 processes need at least 2" in done.stderr


def test_fewer_images_than_processes_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = tmp_path / "few" / split / name / "a.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(path)
    command = [*_training(tmp_path / "few", tmp_path / "run", 1), "--holdout", "0"]
    command[command.index("--nproc-per-node=2")] = "--nproc-per-node=3"
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "2 images to learn from; 3 processes need at least 3" in done.stderr


def test_a_rank_without_a_place_to_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(RunError, match=r"RANK is set, as by torchrun, but .*WORLD_SIZE"),
        distributed.join(torch.device("cpu")),
    ):
        pass


def test_no_two_processes_and_epochs_draw_the_same() -> None:
    seeds = [Workers(rank, 3).own(epoch) for rank in range(3) for epoch in range(10)]
    assert len(set(seeds)) == 30


def test_an_epochs_last_image_is_left_out_where_two_processes_cannot_share_it(
    image_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*_training(image_folder, run, 1), "--holdout", "0.1", "--batch-size", "73"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # 220 = 3 * 73 + 1
    assert open_run(run).state.history[0].loss > 0


def test_two_processes_share_a_recipe_with_parts_crops_and_a_proxy(
    image_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ["--architecture", "speednet-proxy", "--batch-size", "32", "--micro-batch", "8"]
    places = ["--data-dir", str(image_folder), "--out", str(run), "--device", "cpu"]
    command = [*TORCHRUN, "-m", "training.cli", "train", "speednet-96", *small, *places]
    more = ["--epochs", "3", "--holdout", "0.1"]
    subprocess.run([*command, *more], check=True, capture_output=True, timeout=120)
    state = open_run(run).state
    assert state.recipe.proxy
    assert state.recipe.cropped_epochs == 2
    assert state.history[-1].loss < state.history[0].loss


def _run_in_two_processes(tmp_path: Path, *lines: str) -> str:
    """Run lines of Python as what two processes of a run do; return what they say, failing."""
    script = tmp_path / "worker.py"
    head = ["import os, signal, time, torch", "from training.run import distributed"]
    joined = ["with distributed.join(torch.device('cpu')) as workers:"]
    script.write_text("\n".join([*head, *joined, *(f"    {line}" for line in lines)]))
    done = subprocess.run(
        [*TORCHRUN, str(script)],
        check=False,
        capture_output=True,
        text=True,
        env=IMPORTABLE,
        timeout=50,
    )
    assert done.returncode != 0
    return done.stderr


def test_processes_that_start_from_different_places_are_told_apart(tmp_path: Path) -> None:
    said = _run_in_two_processes(tmp_path, "workers.check_same(('epoch', workers.rank))")
    assert "processes [1] do not start where process 0 does" in said


def test_another_error_is_not_taken_for_a_lost_process(tmp_path: Path) -> None:
    said = _run_in_two_processes(tmp_path, "raise RuntimeError('out of memory')")
    assert "RuntimeError: out of memory" in said
    assert "(out of memory)" not in said  # as the reason of a lost process would stand there


def test_a_terminated_process_says_how_to_go_on(tmp_path: Path) -> None:
    said = _run_in_two_processes(
        tmp_path,
        "if not workers.is_first: os.kill(os.getpid(), signal.SIGKILL)",
        "time.sleep(60)",
    )
    assert "RunError: another process of the run is gone" in said


def test_a_process_that_is_terminated_while_it_ends_still_says_why(tmp_path: Path) -> None:
    said = _run_in_two_processes(
        tmp_path,
        "def end(): os.kill(os.getpid(), signal.SIGTERM)",
        "distributed.distributed.destroy_process_group = end",
        "raise distributed.RunError('the reason')",
    )
    assert "RunError: the reason" in said


@pytest.mark.parametrize("images", [7, 8])
def test_shares_hold_every_image_once_and_their_weights_make_the_global_mean(images: int) -> None:
    from training.data.dataset import Split

    batch = Split(torch.zeros(images, 1, 1, 3, dtype=torch.uint8), torch.arange(images))
    workers = [Workers(rank, 3) for rank in range(3)]
    shares = [worker.share(batch).labels for worker in workers]
    assert sorted(torch.cat(shares).tolist()) == list(range(images))
    means = [
        worker.weight(len(share), images) * share.float().mean()
        for worker, share in zip(workers, shares, strict=True)
    ]
    assert float(sum(means)) / 3 == pytest.approx((images - 1) / 2)


class _Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(images))


@pytest.mark.parametrize("error", [None, Diverged("the loss is nan")])
def test_wrapped_networks_are_gone_when_the_processes_part(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Else the last reference to the group of processes would be theirs, and block."""
    wrapped: list[weakref.ref[nn.Module]] = []
    left: list[bool] = []

    def wrap(_: Workers, network: nn.Module) -> nn.Module:
        wrapper = _Wrapped(network)
        wrapped.append(weakref.ref(wrapper))
        return wrapper

    def check(*_: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setenv("RANK", "0")
    for name, result in {"init_process_group": None, "get_rank": 0, "get_world_size": 1}.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, result=result: result)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.distributed,
        "destroy_process_group",
        lambda: left.extend(one() is not None for one in wrapped),
    )
    monkeypatch.setattr(Workers, "average_gradients_of", wrap)
    monkeypatch.setattr("training.run.train.check_finite", check)
    with pytest.raises(Diverged) if error else nullcontext():
        train_quietly(TINY.replace(architecture="fc", epochs=1), source, tmp_path)
    assert left == [False]
