"""Runs that share a cache, lose their data, or are resumed with limits on the size of a step; memory of a large set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot import fit
from lrpot.data import cache
from lrpot.data.packing import write_shards
from lrpot.errors import DataError
from tests.helpers_cli import run_cli
from tests.reliability.interruption import assert_same_weights, fit_until
from tests.unit.training_data import ionic_rows, metrics

ROOT = Path(__file__).parents[2]

SETTINGS: dict[str, Any] = {
    "model.backbone.features": 8,
    "model.backbone.interactions": 1,
    "model.backbone.radial_basis": 6,
    "model.backbone.cutoff": 4.0,
    "model.kernel.form": "none",
    "training.max_epochs": 3,
    "training.batch_size": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows of 16 atoms and of 2, in two files."""
    folder = tmp_path_factory.mktemp("data")
    rows = ionic_rows(16)
    for name, chosen in (("a.extxyz", rows[:9]), ("b.extxyz", rows[9:])):
        ase.io.write(folder / name, chosen, format="extxyz")
    return folder


def test_runs_that_share_a_cache_end_as_those_without_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = cache.build_graphs

    def counted(path: Path, *args: Any, **kwargs: Any) -> None:
        built.append(path.name)
        build(path, *args, **kwargs)

    monkeypatch.setattr(cache, "build_graphs", counted)
    pattern = str(data / "*.extxyz")
    for name, where in (("without", "off"), ("first", str(tmp_path / "cache")), ("second", str(tmp_path / "cache"))):
        fit(pattern, out=tmp_path / name, settings=SETTINGS | {"data.cache": where}, verbose=False)
    assert built == ["a.extxyz", "b.extxyz"] * 2
    assert_same_weights(tmp_path / "without", tmp_path / "first")
    assert_same_weights(tmp_path / "without", tmp_path / "second")
    split = json.loads((tmp_path / "second/split.json").read_text())
    assert sorted(split["train"] + split["valid"] + split["test"]) == list(range(16))
    assert [(file["part"], file["rows"]) for file in split["files"]] == [("train", 9), ("train", 7)]


@pytest.mark.parametrize("epoch_batches", [None, 2])
def test_resume_with_limits_on_a_step_is_bitwise_equal(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch_batches: int | None
) -> None:
    rows = [atoms if n % 3 else atoms[:10] for n, atoms in enumerate(ase.io.read(data / "a.extxyz", ":"))]
    for atoms, whole in zip(rows, ase.io.read(data / "a.extxyz", ":"), strict=True):
        if len(atoms) < len(whole):
            atoms.calc = SinglePointCalculator(
                atoms, energy=whole.get_potential_energy(), forces=whole.get_forces()[:10]
            )
    ase.io.write(tmp_path / "rows.extxyz", rows, format="extxyz")
    settings = SETTINGS | {"training.max_edges": 700, "training.batch_size": 8, "data.test_fraction": 0.0}
    settings["training.epoch_batches"] = epoch_batches
    source = tmp_path / "rows.extxyz"
    fit(source, out=tmp_path / "whole", settings=settings, verbose=False)
    fit_until(monkeypatch, 1, source, out=tmp_path / "run", settings=settings)
    fit(out=tmp_path / "run", resume=True, verbose=False)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")


def test_resume_reads_the_split_back_and_notices_changed_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "rows.extxyz"
    text = (data / "a.extxyz").read_bytes()
    source.write_bytes(text)
    out = tmp_path / "run"
    fit_until(monkeypatch, 1, source, out=out, settings=SETTINGS)
    split = json.loads((out / "split.json").read_text())
    split["train"], split["valid"] = split["train"][1:], split["train"][:1] + split["valid"]
    (out / "split.json").write_text(json.dumps(split))
    source.write_bytes(text.replace(b" energy=", b" energy=1", 1))
    with pytest.raises(DataError, match=r"rows.extxyz: was changed since the run began; put back .*another --out"):
        fit(out=out, resume=True, verbose=False)
    source.write_bytes(text)  # at another time: only the content counts
    fit(out=out, resume=True, verbose=False)
    after = json.loads((out / "split.json").read_text())
    assert after == split


def test_a_split_is_repeated_by_its_file(data: Path, tmp_path: Path) -> None:
    source = data / "a.extxyz"
    fit(source, out=tmp_path / "first", settings=SETTINGS | {"training.seed": 3}, verbose=False)
    settings = SETTINGS | {"data.split": str(tmp_path / "first/split.json")}
    fit(source, out=tmp_path / "second", settings=settings, verbose=False)
    first, second = (json.loads((tmp_path / name / "split.json").read_text()) for name in ("first", "second"))
    assert first == second


def test_a_fit_to_labels_of_charges_in_shards_ends_as_one_to_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, resumed, graphs from the cache, and Born charges to start from in the second shard only."""
    rows = ionic_rows(10)
    for n, atoms in enumerate(rows):
        signs = np.where(atoms.numbers == 11, 1.0, -1.0)
        atoms.arrays["charges"] = 0.9 * signs
        if n >= 6:
            atoms.arrays["born_charges"] = 1.2 * signs[:, None] * np.eye(3).reshape(9)
            atoms.info["dielectric"] = 2.25 * np.eye(3)
    ase.io.write(tmp_path / "rows.extxyz", rows, format="extxyz")
    shards = write_shards(tmp_path / "shards", [tmp_path / "rows.extxyz"], 6)
    settings = SETTINGS | {"model.kernel.form": "coulomb", "model.charges.init": "born", "training.stages": 1}
    settings |= {"training.charge_weight": 1.0, "training.born_weight": 0.1}
    settings |= {"training.max_epochs": 2, "training.lr_long": 0.01}
    text = fit(tmp_path / "rows.extxyz", out=tmp_path / "text", settings=settings, verbose=False)
    assert text.stages[0]["origin"].startswith("Born charges of 4 rows of")
    assert text.stages[0]["charges"]["Na"] == pytest.approx(1.2 / 2.25**0.5)
    settings |= {"data.cache": str(tmp_path / "cache")}
    fit_until(monkeypatch, 1, shards, out=tmp_path / "run", settings=settings)
    resumed = fit(out=tmp_path / "run", resume=True, verbose=False)
    assert_same_weights(tmp_path / "text", tmp_path / "run")
    assert text.stages[1]["validation"] == resumed.stages[1]["validation"]
    before, after = (entry["validation"]["charges"]["mae"] for entry in text.stages)
    assert after < before


def test_a_run_of_an_earlier_version_says_why_it_cannot_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its split.json names no files; the run is left as it is."""
    out = tmp_path / "run"
    fit_until(monkeypatch, 1, data / "a.extxyz", out=out, settings=SETTINGS)
    split = json.loads((out / "split.json").read_text())
    del split["files"]
    (out / "split.json").write_text(json.dumps(split))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run_cli("fit", "--resume", "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "begun by an earlier version of lrpot" in line
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


# A million rows are one structure, encoded once and written a million times: what is kept of each is what counts.
LARGE_SET = """
import sys
from pathlib import Path
import numpy as np
from lrpot.config import TrainingConfig
from lrpot.data.graphs import COLUMNS, GraphFile, Graphs
from lrpot.data.readers import to_structure
from lrpot.data.records import RecordWriter, encode
from lrpot.training.batches import train_loader, valid_loader
from tests.unit.graph_data import varied_rows

def megabytes():
    status = dict(line.split(":") for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0]) / 1024

n = 1_000_000
structure = to_structure(varied_rows(2)[1], 4.0)
fields = {name: value for name, value in structure.to_dict().items() if name not in ("num_nodes", "born_charges")}
atoms, edges = structure.num_nodes, structure.edge_index.shape[1]
layout, record = encode(fields, atoms, edges)
before = megabytes()
with open(sys.argv[1], "w+b") as file:
    writer = RecordWriter(file)
    for _ in range(n):
        writer.add(layout, record)
    columns = {"atoms": np.full(n, atoms), "edges": np.full(n, edges), "row": np.arange(n), "formula": np.zeros(n)}
    columns |= {"name": np.zeros(n), "volume": np.full(n, 20.0)}
    columns = {name: values.astype(COLUMNS[name]) for name, values in columns.items()}
    about = {"kind": "graphs", "key": None, "formulas": ["ClK"], "names": [""], "bad": [], "n_rows": n, "sha256": ""}
    writer.finish(columns, about)
    del writer, columns
    graphs = Graphs([GraphFile(Path("rows"), file, "rows")])
Path(sys.argv[1]).unlink()
parts = [graphs.select(np.arange(n) % 10 != 0), graphs.select(np.arange(0, n, 10))]
config = TrainingConfig(batch_size=64, max_edges=4000)
seen = 0
for loader in (train_loader(parts[0], config, 0), valid_loader(parts[1], config)):
    for number, batch in enumerate(loader):
        seen += batch.cell.shape[0]
        if number == 100:
            break
few = parts[0].select(np.arange(0, len(parts[0]), 500))
few.attach({"known_forces": s.positions} for s in few)
seen += sum(s.known_forces.shape[0] == atoms for s in few)
in_memory = n * sum(value.nbytes for value in fields.values()) / 2**20
print(seen, megabytes() - before, in_memory)
"""


@pytest.mark.slow
def test_a_million_structures_are_never_in_memory(tmp_path: Path) -> None:
    """Index, split, order and batches of 10^6 structures take a small part of what the structures would."""
    words = [sys.executable, "-c", LARGE_SET, str(tmp_path / "graphs")]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    seen, grown, in_memory = map(float, run.stdout.split())
    assert seen > 2000
    # 200 bytes of each: its columns, its place, its number in the order of an epoch, its part in a batch
    assert grown < 1e6 * 200 / 2**20 < in_memory / 10
