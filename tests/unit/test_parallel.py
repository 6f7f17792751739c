"""Processes that share steps: sums, shares, and the loss and gradients of one process."""

from __future__ import annotations

import functools
import os
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.build import build_potential
from lrpot.config import FitConfig, make_config
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings, build_graphs
from lrpot.data.graphs import Graphs
from lrpot.errors import ConfigError, DataError, ProcessLost
from lrpot.training import launch
from lrpot.training.baseline import store_known
from lrpot.training.batches import shares, train_loader, valid_loader
from lrpot.training.module import StageModule
from lrpot.training.parallel import ALONE, Processes
from lrpot.training.stages import Stage
from tests.unit import training_data
from tests.unit.training_data import ionic_rows

BOTH = Stage("both", frozenset({"short", "long"}))
ROUNDING = 1e-10  # relative, fp64: the same sums in another order

SMALL = training_data.SMALL | {
    "training.dtype": "float64",
    "training.batch_size": 5,
}


def uneven_rows(n: int) -> list[Atoms]:
    """Rows of three compositions and sizes; every fourth has no forces, some have no stress. The last is alone in its
    size."""
    rows = []
    for number, atoms in enumerate(ionic_rows(n, stress=True)):
        results = dict(atoms.calc.results)
        removed = [[], [0], [0, 1, 2], [15]][number % 4] if number < n - 1 else list(range(10))
        left = [i for i in range(len(atoms)) if i not in removed]
        results["energy"] *= len(left) / len(atoms)
        results["forces"] = results["forces"][left]
        if number % 4 == 3:
            del results["forces"]
        if number % 3:
            del results["stress"]
        atoms = atoms[left]
        atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    return rows


def settings(**changed: object) -> FitConfig:
    return make_config(None, SMALL | {name.replace("__", "."): value for name, value in changed.items()})


def graphs_of(path: Path) -> Graphs:
    return Graphs([load_graphs(path, GraphSettings(4.0, ("energy",)))])


def module_of(config: FitConfig, structures: Graphs, processes: Processes) -> StageModule:
    torch.manual_seed(0)
    model = build_potential(config.model, structures.elements).set_precision(torch.float64)
    torch.nn.init.normal_(model.short.readout.last.weight)
    model.long.charges.set_values({11: 0.5, 17: -0.4})
    store_known(model, structures, {"offset"}, processes)
    scales = {"energy": 0.2, "forces": 0.3, "stress": 0.01}
    return StageModule(model, BOTH, config.training, structures, scales, 1e-3, processes)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.extxyz"
    ase.io.write(path, uneven_rows(13), format="extxyz")
    return path


# --- shares


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_all_of_a_step_and_balanced(n: int) -> None:
    sizes = np.random.default_rng(n).integers(1, 1000, 40).tolist()
    found = shares(sizes, n)
    assert sorted(place for places in found for place in places) == list(range(40))
    assert all(places == sorted(places) for places in found)
    loads = [sum(sizes[place] for place in places) for places in found]
    # of largest first: nobody has more than the average and half of the largest
    assert max(loads) - sum(loads) / n <= 0.5 * max(sizes)


def test_shares_of_a_step_smaller_than_the_number_of_processes() -> None:
    assert shares([3, 9], 4) == [[1], [0], [], []]
    assert shares([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]


def test_loaders_of_all_processes_read_each_structure_once_and_in_step(rows: Path) -> None:
    structures = graphs_of(rows)
    store_known(build_potential(settings().model, structures.elements), structures, set())
    training = settings(training__max_edges=int(structures.edges.max() * 2)).training
    for loader_of in (functools.partial(train_loader, seed=0), valid_loader):
        alone = [batch.row.tolist() for batch in loader_of(structures, training)]
        loaders = [loader_of(structures, training, processes=Processes(rank, 3)) for rank in range(3)]
        empty = 0
        for whole, *parts in zip(alone, *loaders, strict=True):
            found = {}
            for part in parts:
                assert int(part.n_structures) == len(whole)
                assert len(part.places) == len(part.row) == part.cell.shape[0]
                assert part.edge_index.shape[1] == part.edge_shift.shape[0]
                found |= dict(zip(part.places.tolist(), part.row.tolist(), strict=True))
                empty += len(part.row) == 0
            assert [found[place] for place in range(len(whole))] == whole
        assert empty  # steps of one or two structures are among them


def test_one_process_sends_nothing() -> None:
    values = torch.arange(3.0)
    assert ALONE.add(values) is values
    assert ALONE.add_differentiably(values) is values
    assert ALONE.from_first({"a": [1]}) == {"a": [1]}
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert list(ALONE.part(5)) == [0, 1, 2, 3, 4]
    with tempfile.TemporaryFile() as file:
        assert ALONE.gather_files(file) == [file]


@pytest.mark.parametrize(("n", "size"), [(10, 3), (2, 5), (0, 2)])
def test_parts_of_all_processes_are_all_places(n: int, size: int) -> None:
    assert [place for rank in range(size) for place in Processes(rank, size).part(n)] == list(range(n))


# --- two processes


def together(job: object) -> None:
    launch.start(job, 2)  # type: ignore[arg-type]


def check_sums_and_loss(rows: Path, processes: Processes) -> None:
    """Done by both: the collectives, then each step's loss and gradients beside those of one process."""
    assert processes.size == 2
    assert processes.add(torch.tensor([1.0, float(processes.rank)])).tolist() == [2.0, 1.0]
    assert processes.any(processes.rank == 1)
    assert not processes.any(False)
    assert processes.from_first([processes.rank, "ä", None]) == [0, "ä", None]
    with tempfile.TemporaryFile() as file:
        file.write(b"%d" % processes.rank * (processes.rank + 3))
        contents = []
        for copy in processes.gather_files(file):
            copy.seek(0)
            contents.append(copy.read())
            copy.close()
        assert contents == [b"000", b"1111"]
    linear = torch.nn.Linear(2, 1)
    processes.copy_first(linear)
    seen = processes.from_first([value.tolist() for value in linear.state_dict().values()])
    assert seen == [value.tolist() for value in linear.state_dict().values()]

    with unittest.mock.patch("lrpot.data.cache.build_graphs", wraps=build_graphs) as building:
        load_graphs(rows, GraphSettings(4.0, ("energy",)), cache=str(rows.parent / "cache"))
    assert processes.add(torch.tensor([building.call_count])).item() == 1  # the other has waited
    most = int(graphs_of(rows).edges.max())
    for changed in (
        {},
        {"training__max_edges": int(1.5 * most)},
        {"training__batch_size": 2, "training__total_charge_weight": 0.5},
    ):
        compare_steps(settings(**changed), rows, processes)


def compare_steps(config: FitConfig, rows: Path, processes: Processes) -> None:
    whole, own = graphs_of(rows), graphs_of(rows)
    alone, shared = module_of(config, whole, ALONE), module_of(config, own, processes)
    for module in (alone, shared):
        module.on_validation_epoch_start()
    torch.testing.assert_close(alone.model.short.offset, shared.model.short.offset, rtol=0, atol=0)
    steps = zip(train_loader(whole, config.training, 0), train_loader(own, config.training, 0, processes), strict=True)
    for batch, share in steps:
        for create_graph in (True, False):
            one, one_errors = alone._loss(batch, create_graph=create_graph)
            part, part_errors = shared._loss(share, create_graph=create_graph)
            errors = processes.add(torch.tensor([float(part.detach()), *part_errors.values()], dtype=torch.float64))
            expected = torch.tensor([float(one.detach()), *one_errors.values()], dtype=torch.float64)
            assert part_errors.keys() == one_errors.keys()
            torch.testing.assert_close(errors, expected, rtol=ROUNDING, atol=0)
            if create_graph:
                for module, loss in ((alone, one), (shared, part)):
                    module.zero_grad()
                    loss.backward()
                shared.on_before_optimizer_step(shared.configure_optimizers()["optimizer"])
        gradients = [
            torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in m.model.parameters()])
            for m in (alone, shared)
        ]
        size = float(gradients[0].abs().max())
        assert size > 1e-3
        torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=ROUNDING * size)


def test_two_processes_sum_to_the_loss_and_the_gradients_of_one(rows: Path) -> None:
    """Steps of three compositions, with labels that some lack, of which a process may get nothing."""
    together(functools.partial(check_sums_and_loss, rows))


def fail_in_one(how: str, processes: Processes) -> None:
    if processes.rank == 1 and how == "data":
        raise DataError("row 7 is wrong; mend it")
    if processes.rank == 1 and how == "exit":
        os._exit(7)
    if processes.rank == 0 and how == "deaf":
        raise DataError("first")
    if how == "deaf":
        time.sleep(1000.0)
    processes.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("data", DataError, "row 7 is wrong"),
        ("exit", ProcessLost, "process 1 of 2 ended with exit code 7"),
        ("deaf", DataError, "first"),
    ],
)
def test_a_failure_of_one_ends_all_and_says_why(
    monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.5)
    with pytest.raises(kind, match=message) as caught:
        together(functools.partial(fail_in_one, how))
    if how != "exit":
        assert "fail_in_one" in str(caught.value.__cause__)  # for --debug


def test_errors_that_cannot_be_sent_are_told_in_words() -> None:
    class Strange(Exception):
        """Of a class that no other process can find."""

    assert str(launch._sendable(Strange("odd"))) == "Strange: odd"
    error = DataError("wrong")
    assert launch._sendable(error) is error


# --- torchrun and SLURM


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_batch_script_of_slurm_is_no_process_among_several(bare: pytest.MonkeyPatch) -> None:
    assert launch.environment() is None
    bare.setenv("SLURM_NTASKS", "4")
    assert launch.environment() is None
    bare.setenv("TORCHELASTIC_RUN_ID", "x")
    bare.setenv("WORLD_SIZE", "1")
    assert launch.environment() is None


def test_several_machines_need_a_starter(bare: pytest.MonkeyPatch) -> None:
    assert launch.processes_of(None, 4, 1) == ALONE
    with pytest.raises(ConfigError, match=r"nodes = 2: .* torchrun or srun"):
        launch.processes_of(None, 4, 2)


def test_ranks_of_torchrun_and_srun(bare: pytest.MonkeyPatch) -> None:
    for name, value in {"STEP_NUM_TASKS": 4, "NTASKS": 4, "PROCID": 3, "LOCALID": 1}.items():
        bare.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        launch.environment()
    bare.setenv("SLURM_NTASKS_PER_NODE", "2")
    found = launch.environment()
    assert found is not None
    assert launch.processes_of(found, 2, 2) == Processes(3, 4, 1)
    with pytest.raises(ConfigError, match=r"started as 4 processes, but .* is 1 x 1; give --devices"):
        launch.processes_of(found, 1, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}.items():
        bare.setenv(name, str(value))
    found = launch.environment()
    assert found is not None
    assert launch.processes_of(found, 2, 1) == Processes(1, 2, 1)


def test_of_what_is_wrong_for_all_only_the_first_process_speaks(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError), launch.told_once(None):
        raise ConfigError("wrong")
    for name in ("STEP_NUM_TASKS", "NTASKS_PER_NODE"):
        bare.setenv(f"SLURM_{name}", "2")
    for rank, kind in (("0", ConfigError), ("1", SystemExit)):
        bare.setenv("SLURM_PROCID", rank)
        with pytest.raises(kind), launch.told_once(launch.environment()):
            raise ConfigError("wrong")


# --- settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training__devices": 6}, "6 processes .* training.batch_size is 5; raise it to 6"),
        ({"training__devices": 2, "training__nodes": 3}, "6 processes"),
        ({"training__devices": 2, "training__device": "cuda:1"}, "cuda:1 is one GPU, .* write cuda"),
        ({"training__devices": 0}, "greater than or equal to 1"),
    ],
)
def test_numbers_of_processes_that_make_no_sense(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


def test_each_process_of_several_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Processes(5, 8, 1).device("cuda") == "cuda:1"
    assert Processes(5, 8, 1).device("cpu") == "cpu"
    assert ALONE.device("cuda") == "cuda"
    assert ALONE.device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # SLURM shows each process its own
    assert Processes(5, 8, 1).device("cuda") == "cuda:0"
