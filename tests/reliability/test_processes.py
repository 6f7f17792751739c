"""A fit by two processes is the fit of one, and ends as a whole: killed, interrupted, started by torchrun or srun."""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import psutil
import pytest
import torch

from lrpot import fit, load
from lrpot.config import make_config
from lrpot.errors import TrainingError
from lrpot.training import launch
from lrpot.training.module import StageModule
from lrpot.training.parallel import Processes
from tests.reliability.interruption import assert_same
from tests.unit.test_parallel import uneven_rows
from tests.unit.training_data import SMALL, metrics

fit_module = importlib.import_module("lrpot.training.fit")  # `lrpot.training` has no name of its own for it

# Uneven steps, of one to three structures; a learning rate that is halved and stages that end early by themselves.
SETTINGS = SMALL | {
    "training.dtype": "float64",
    "training.max_epochs": 4,
    "training.schedule": "physical-start",
    "training.batch_size": 3,
    "training.max_edges": 2000,
    "training.lr_schedule": "plateau",
    "training.lr_patience": 1,
    "training.patience": 3,
    "training.min_improvement": 0.99,
    "training.gradient_clip": 1.0,
    "data.jobs": 1,
}
WORDS = [f"{name}={value}" for name, value in SETTINGS.items()]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PATIENCE = 120.0  # s, for processes that share cores with others

ROUNDING = 1e-6  # relative, fp64, after several epochs
# A bias that neither forces nor energies without offsets depend on has a gradient of rounding alone, which Adam makes
# steps of: absolute, in units of the weights.
DRIFT = 1e-7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.extxyz"
    ase.io.write(path, uneven_rows(18), format="extxyz")
    return path


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    fit(data, out=out, settings=SETTINGS, verbose=False)
    return out


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "run"
    result = fit(data, out=out, settings=SETTINGS | {"training.devices": 2}, verbose=False)
    assert result.path == out / "model.pt"
    assert len(result.stages) == 4
    assert result.test is not None
    return out


def assert_close(a: Path, b: Path) -> None:
    """The same history and weights up to rounding."""
    left, right = metrics(a), metrics(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert x.keys() == y.keys()
        for name, text in x.items():
            # before the first epoch there is no loss of training
            same = text == y[name] == "" or float(text) == pytest.approx(float(y[name]), rel=ROUNDING)
            assert same, (name, x["stage"], x["epoch"])
    for number in range(4):
        first, second = (load(run / "stages" / f"{number}.pt").state_dict() for run in (a, b))
        for name, values in first.items():
            torch.testing.assert_close(
                second[name], values, rtol=ROUNDING, atol=DRIFT, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.slow
def test_two_processes_fit_what_one_fits(one: Path, two: Path) -> None:
    assert_close(one, two)
    # the case is worth it: all stages learn, the learning rate is halved, stages end by themselves
    for stage in "123":
        found = [record for record in metrics(two) if record["stage"] == stage]
        assert min(float(record["loss"]) for record in found) < 0.999 * float(found[0]["loss"])
        assert float(found[-1]["lr"]) == 0.5 * float(found[-2]["lr"])
        assert int(found[-1]["epoch"]) < SETTINGS["training.max_epochs"]
    before, after = (load(two / "stages" / f"{number}.pt").state_dict() for number in (1, 2))
    frozen = [name for name in before if name.startswith("short.") and name != "short.offset"]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["long.charges.values"], after["long.charges.values"])


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [*module(), str(data), "--out", str(out), "--devices", "2", *more, "--set", *WORDS]


def module() -> list[str]:
    return [sys.executable, "-m", "lrpot.cli.main", "fit"]


def started(words: list[str], sign: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A fit that runs, from the moment at which a file is there, and its processes in the order of their ranks."""
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + PATIENCE
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    children = psutil.Process(process.pid).children(recursive=True)
    return process, sorted((c for c in children if "spawn_main" in " ".join(c.cmdline())), key=lambda c: c.pid)


def ended(process: subprocess.Popen[str], children: list[psutil.Process]) -> str:
    """What it has said; nothing of it is left."""
    output = process.communicate(timeout=PATIENCE)[0]
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []
    return output


@pytest.mark.slow
def test_kill_9_and_resume_by_as_many_processes_is_bitwise_equal(data: Path, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process, children = started(command(data, out), out / "checkpoints/2/newest.ckpt")
    process.send_signal(signal.SIGKILL)
    ended(process, children)
    subprocess.run([*module(), "--resume", "--out", str(out)], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    assert_same(two, out)


@pytest.mark.slow
def test_resume_by_another_number_of_processes_is_told(data: Path, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process, children = started(command(data, out), out / "stages/1.pt")
    process.send_signal(signal.SIGKILL)
    ended(process, children)
    words = [*module(), "--resume", "--out", str(out), "--devices", "1"]
    resumed = subprocess.run(words, env=ENVIRONMENT, check=True, stderr=subprocess.PIPE, text=True)
    assert "another number of processes (1, before 2)" in resumed.stderr
    assert_close(one, out)


def kill_second(process: subprocess.Popen[str], children: list[psutil.Process]) -> None:
    children[1].kill()


def press_ctrl_c(process: subprocess.Popen[str], children: list[psutil.Process]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        (kill_second, 1, "process 1 of 2 was killed (SIGKILL); if memory ran out"),
        (press_ctrl_c, 130, "stopped by Ctrl-C; go on with: lrpot fit --resume"),
    ],
)
def test_all_end_with_one_message(
    data: Path, tmp_path: Path, harm: Callable[..., None], code: int, message: str
) -> None:
    out = tmp_path / "run"
    # long enough to be met while it learns
    process, children = started(
        [*command(data, out), "training.max_epochs=1000", "training.patience=1000"], out / "checkpoints/1/newest.ckpt"
    )
    assert len(children) == 2
    harm(process, children)
    output = ended(process, children)
    assert process.returncode == code, output
    assert message in output
    assert len(re.findall("^lrpot: ", output, re.MULTILINE)) == 1, output
    assert "Traceback" not in output
    assert not (out / "model.pt").exists()


def fit_that_fails(how: str, data: Path, out: Path, processes: Processes) -> None:
    """In the second process, in its second epoch."""
    loss = StageModule._loss

    def broken(self: StageModule, batch: object, *, create_graph: bool) -> object:
        value, errors = loss(self, batch, create_graph=create_graph)
        if processes.rank == 1 and create_graph and self.current_epoch == 1:
            if how == "memory":
                raise torch.OutOfMemoryError("of the test")
            value = value * float("nan")
        return value, errors

    StageModule._loss = broken
    config = make_config(None, SETTINGS | {"data.train": str(data), "training.devices": 2})
    fit_module._fit(out, config, processes, resume=False, overwrite=False, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("nan", TrainingError, r"not finite in .*, epoch 1, for rows \d+"),
        ("memory", MemoryError, "the GPU has no memory left; lower training.batch_size"),
    ],
)
def test_what_fails_in_one_process_is_told_and_the_last_epoch_is_kept(
    data: Path, tmp_path: Path, how: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        launch.start(functools.partial(fit_that_fails, how, data, tmp_path / "run"), 2)
    assert (tmp_path / "run/checkpoints/1/newest.ckpt").exists()
    assert not (tmp_path / "run/stages/1.pt").exists()


@pytest.mark.slow
def test_torchrun(data: Path, two: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lrpot.cli.main", "fit"]
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"}
    out = tmp_path / "run"
    words = [*torchrun, str(data), "--out", str(out), "--devices", "2", "--set", *WORDS]
    here = tmp_path / "here"
    here.mkdir()
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = functools.partial(
        subprocess.run, words, cwd=here, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stage 3/3 (") == 1
    assert_same(two, out)
    assert list(here.iterdir()) == []
    again = run()
    assert again.returncode == 1
    assert again.stderr.count("already holds files") == 1


@pytest.mark.slow
def test_srun(data: Path, two: Path, tmp_path: Path, unused_port: int) -> None:
    """What srun sets in the environment of its tasks, set by hand."""
    out = tmp_path / "run"
    step = {"NTASKS": 2, "STEP_NUM_TASKS": 2, "NTASKS_PER_NODE": 2, "NODEID": 0, "JOB_ID": 1, "NODELIST": "127.0.0.1"}
    tasks = []
    for rank in range(2):
        slurm = {f"SLURM_{name}": str(value) for name, value in (step | {"PROCID": rank, "LOCALID": rank}).items()}
        environment = ENVIRONMENT | slurm | {"GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(unused_port)}
        tasks.append(
            subprocess.Popen(
                command(data, out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [task.communicate(timeout=PATIENCE)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "stage 3/3" in outputs[0]
    assert outputs[1] == ""
    assert_same(two, out)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_fit_what_one_process_fits(data: Path, one: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"training.devices": 2, "training.device": "cuda"}
    fit(data, out=tmp_path / "run", settings=settings, verbose=False)
    assert_close(one, tmp_path / "run")
