"""Everything that lrpot reads: valid files of each kind, how they are spoiled, and when reading one went wrong.

A spoiled file is either refused, or read and then right: what was read is sound, and what was not spoiled is as it was.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from fuzz_mutations import (
    Mutation,
    spoil_archive,
    spoil_bytes,
    spoil_hdf5,
    spoil_json,
    spoil_safetensors,
    spoil_text,
)
from phonopy.structure.atoms import PhonopyAtoms

from lrpot.build import build_potential
from lrpot.charges.charge_file import read_charges, table_charges
from lrpot.cli.main import run
from lrpot.config import DataConfig, PropertiesConfig, check_config, make_config, parse_settings
from lrpot.data.readers import read_rows, to_structures
from lrpot.data.records import Records, RecordWriter, encode
from lrpot.data.shards import write_shard
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import ConfigError
from lrpot.md.state import State, read_state, write_state
from lrpot.model_file import ModelInfo, load, load_model, save
from lrpot.potential import Potential
from lrpot.properties.build import build_property_model
from lrpot.properties.model import PropertyModel
from lrpot.properties.tables import read_predictions
from lrpot.properties.targets import Target
from lrpot.structure import Structure, edge_vectors
from lrpot.training.checkpoint import NEWEST, PREVIOUS, TwoCheckpoints, usable_checkpoint
from lrpot.training.split import divide, stored_split
from lrpot.workflows.nac import long_waves_of_file

CUTOFF = 4.0  # A
N_ROWS, N_ATOMS = 4, 4
SPLIT = {"train": [0, 1, 2, 3, 4], "valid": [5, 6], "test": [7]}
CHARGES = {"Na": 0.8, "Cl": -0.8}
BACKBONE = {"name": "painn", "features": 2, "interactions": 1, "radial_basis": 2, "cutoff": CUTOFF}


class WrongSuccess(Exception):
    """A spoiled file that was read as something that it is not."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: in the table. file: what it is called. valid: the content of sound files.
        spoil: changes a part that means something; besides that, bytes are spoiled.
        judge: reads a file, given the sound content that it was made from. Raises LrpotError if it is refused,
            WrongSuccess if it should have been.
        beside: files that lie in the same folder.
    """

    name: str
    file: str
    valid: tuple[bytes, ...]
    spoil: Mutation
    judge: Callable[[Path, bytes], None]
    beside: tuple[tuple[str, bytes], ...] = ()


def expect(holds: object, what: str) -> None:
    if not holds:
        raise WrongSuccess(what)


# --- crystals


def crystals() -> list[Atoms]:
    """Labelled crystals of four atoms: energy (eV), forces (eV/A), stress (eV/A^3)."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(N_ROWS):
        atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
        atoms.positions += 0.1 * rng.normal(size=(N_ATOMS, 3))
        atoms.calc = SinglePointCalculator(
            atoms, energy=rng.normal(), forces=rng.normal(size=(N_ATOMS, 3)), stress=rng.normal(size=6)
        )
        rows.append(atoms)
    return rows


def check_structures(structures: Sequence[Structure]) -> None:
    """Whether each is what the table of `lrpot.structure` says."""
    for s in structures:
        n = s.num_nodes
        shapes = {"positions": (n, 3), "cell": (1, 3, 3), "forces": (n, 3), "stress": (1, 3, 3), "energy": (1,)}
        for name, shape in shapes.items():
            if name in s:
                expect(tuple(s[name].shape) == shape, f"{name} has shape {tuple(s[name].shape)}")
                expect(s[name].isfinite().all(), f"{name} is not finite")
        expect(n > 0 and int(s.numbers.min()) >= 1 and int(s.numbers.max()) <= 118, "an atom of no element")
        distances = edge_vectors(s).norm(dim=1)
        expect(((distances > 0) & (distances < CUTOFF)).all(), "an edge of impossible length")


def judge_crystals(path: Path, sound: bytes) -> None:
    check_structures(to_structures(read_rows(path), CUTOFF))


def judge_extxyz(path: Path, sound: bytes) -> None:
    """Besides, rows before and after what was spoiled are what they were."""
    structures = to_structures(read_rows(path), CUTOFF)
    check_structures(structures)
    content = path.read_bytes()
    before = to_structures(read_rows(path.with_name("sound.extxyz")), CUTOFF)
    front, back = common_start(content, sound), common_start(content[::-1], sound[::-1])
    size = len(sound) // N_ROWS  # all rows are equally long, which `extxyz` sees to
    for row in range(min(front // size, len(structures))):
        expect(same_structure(structures[row], before[row]), f"row {row} was not spoiled and is another")
    for row in range(1, min(back // size, len(structures)) + 1):
        expect(same_structure(structures[-row], before[-row]), f"row {row} from the end was not spoiled and is another")


def common_start(a: bytes, b: bytes) -> int:
    """How many bytes are the same from the first on."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def same_structure(a: Structure, b: Structure) -> bool:
    names = ("numbers", "positions", "cell", "energy", "forces", "stress")
    return all((name in a) == (name in b) and (name not in a or torch.equal(a[name], b[name])) for name in names)


def extxyz() -> bytes:
    """Rows of equal length in bytes: blanks at the end of the lines with labels, which mean nothing."""
    texts = []
    for atoms in crystals():
        text = io.StringIO()
        ase.io.write(text, atoms, format="extxyz")
        texts.append(text.getvalue().split("\n"))
    longest = max(len(lines[1]) for lines in texts)
    atoms_longest = max(len("\n".join(lines[2:])) for lines in texts)
    for lines in texts:
        pad = longest - len(lines[1]) + atoms_longest - len("\n".join(lines[2:]))
        lines[1] += " " * pad
    return "".join("\n".join(lines) for lines in texts).encode()


def judge_shard(path: Path, sound: bytes) -> None:
    """Besides, numbers are those that HDF5 gives by itself."""
    rows = read_rows(path)
    structures = to_structures(rows, CUTOFF)
    check_structures(structures)
    with h5py.File(path) as file:
        expect(len(structures) == len(file["atoms"]), "rows are missing")
        numbers = np.concatenate([s.numbers for s in structures])
        expect((numbers == file["numbers"][()]).all(), "other elements")
        for name in ("positions", "forces"):
            if name in file and all(name in s for s in structures):
                read = np.concatenate([s[name] for s in structures])
                expect(np.array_equal(read, file[name][()]), f"other {name}")


def judge_csv(path: Path, sound: bytes) -> None:
    """Besides, there are as many rows as lines, and every number is that of its line."""
    rows = read_rows(path)
    check_structures(to_structures(rows, CUTOFF, targets=("gap",)))
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(field.strip() for field in line)]
    named = lines[len(lines) - len(rows) :]
    expect(len(lines) - len(rows) in (0, 1), "lines are missing")
    for row, line in zip(rows, named, strict=True):
        value = row.atoms.info.get("gap", row.atoms.info.get("target"))
        if isinstance(value, float):
            expect(any(value == number(field) for field in line[1:]), f"row {row.number} has another number")


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pandas_table(rows: Sequence[Atoms]) -> bytes:
    data = []
    for place, atoms in enumerate(rows):
        sites = [
            {"species": [{"element": symbol, "occu": 1}], "abc": at.tolist()}
            for symbol, at in zip(atoms.get_chemical_symbols(), atoms.get_scaled_positions(), strict=True)
        ]
        data.append([{"lattice": {"matrix": atoms.cell.tolist()}, "sites": sites}, float(place)])
    return json.dumps({"index": list(range(len(rows))), "columns": ["structure", "gap"], "data": data}).encode()


def jarvis_table(rows: Sequence[Atoms]) -> bytes:
    entries = [
        {
            "jid": f"J-{place}",
            "gap": float(place),
            "atoms": {
                "elements": atoms.get_chemical_symbols(),
                "coords": atoms.get_scaled_positions().tolist(),
                "lattice_mat": atoms.cell.tolist(),
                "cartesian": False,
            },
        }
        for place, atoms in enumerate(rows)
    ]
    return json.dumps(entries).encode()


def judge_json(path: Path, sound: bytes) -> None:
    """Besides, there are as many rows as entries."""
    rows = read_rows(path)
    check_structures(to_structures(rows, CUTOFF, targets=("gap",)))
    content = json.loads(path.read_bytes())
    entries = content["data"] if isinstance(content, dict) else content
    expect(len(rows) == len(entries), "rows are missing")


# --- settings


def judge_settings(path: Path, sound: bytes) -> None:
    """Reading and checking agree, and what was read is what its own text gives."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = run(["config", "check", str(path)])
    try:
        config = make_config(path)
    except ConfigError:
        expect(code == 1, "`lrpot config check` accepts what a fit refuses")
        raise
    again = path.with_name("again.yaml")
    again.write_text(config.to_yaml(), encoding="utf-8")
    expect(make_config(again) == config, "its own text gives other settings")
    if code:  # a setting that stands twice
        _, problems, _ = check_config(path)
        expect(all("is set already in line" in problem.text for problem in problems), str(problems[0]))


def judge_words(path: Path, sound: bytes) -> None:
    words = path.read_bytes().decode("utf-8", "replace").splitlines()
    settings = parse_settings(words)
    config = make_config(None, settings)
    expect(make_config(json.loads(config.model_dump_json())) == config, "its own text gives other settings")


# --- models


def potential(seed: int = 0) -> Potential:
    config = make_config({"model": {"backbone": BACKBONE, "kernel": {"tolerance": 1e-4}}})
    torch.manual_seed(seed)
    model = build_potential(config.model, [11, 17])
    torch.nn.init.normal_(model.short.readout.last.weight)
    model.info = ModelInfo(config=config.model_dump(mode="json"), elements=["Na", "Cl"], stages=[{"stage": 1}])
    return model.eval()


def property_model() -> PropertyModel:
    encoder = {"name": "cgcnn", "features": 2, "blocks": 1, "neighbours": 4, "reach": 8.0, "basis": 2}
    config = PropertiesConfig.model_validate({"targets": ["gap"], "encoder": encoder})
    torch.manual_seed(0)
    model = build_property_model(config, [11, 17])
    model.info = ModelInfo(config={"properties": config.model_dump(mode="json")}, elements=["Na", "Cl"])
    return model.eval()


def energies(path: Path) -> torch.Tensor:
    model = load(path)
    structures = to_structures(read_rows(path.with_name("sound.extxyz")), model.cutoff)
    return torch.cat([model(s, forces=False)["energy"] for s in structures])


def judge_model(path: Path, sound: bytes) -> None:
    """What loads has finite weights and can be described; with the same settings and weights it is the same model."""
    model = load_model(path)
    for name, value in model.state_dict().items():
        expect(not value.is_floating_point() or value.isfinite().all(), f"{name} is not finite")
    with redirect_stdout(io.StringIO()):
        expect(run(["info", str(path)]) == 0, "it loads, and `lrpot info` fails")
    if isinstance(model, Potential) and essence(path.read_bytes()) == essence(sound):
        whole = path.with_name("whole.pt")
        whole.write_bytes(sound)
        expect(torch.equal(energies(path), energies(whole)), "other energies")


def essence(content: bytes) -> tuple[Any, bytes]:
    """What a model file says that decides on energies."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        about = json.loads(archive.read("model.json"))
        own = [(m["config"]["model"], m["elements"]) for m in about.get("models", [about])]
        return own, archive.read("weights.safetensors")


# --- what a run leaves


def judge_checkpoint(path: Path, sound: bytes) -> None:
    """Either it is unharmed, or the one before is taken and that is told."""
    newest, previous = path.with_name(NEWEST), path.with_name(PREVIOUS)
    newest.write_bytes(path.read_bytes())
    previous.write_bytes(sound)
    told: list[str] = []
    found = usable_checkpoint(path.parent, told.append)
    expect(found in (newest, previous), "no checkpoint was found")
    assert found is not None
    expect((found == previous) == (len(told) == 1), "the fall back was not told")
    expect(same_nested(torch.load(found, weights_only=True), torch.load(previous, weights_only=True)), "other content")
    if told:
        raise ConfigError(told[0])  # a refusal


def same_nested(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_nested(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same_nested, a, b))
    return bool(a == b)


def judge_split(path: Path, sound: bytes) -> None:
    """As the split of a run, and as the list that a user gives: rows by part are those of the file."""
    rows = np.arange(8)
    listed = divide(DataConfig(train="data.extxyz", split=str(path)), 0, rows, rows)
    own = stored_split(path, rows)
    content = json.loads(path.read_bytes())
    for part in SPLIT:
        wanted = sorted(map(int, content.get(part, [])))
        expect(listed[part].tolist() == wanted and own[part].tolist() == wanted, f"other rows in {part}")


def judge_charges(path: Path, sound: bytes) -> None:
    found = table_charges(read_charges(path), [11, 17], where=str(path))
    expect(found.keys() == {11, 17} and np.isfinite(list(found.values())).all(), "no charges")


def judge_state(path: Path, sound: bytes) -> None:
    """What was spoiled in the numbers is seen."""
    state = read_state(path)
    whole = path.with_name("whole.state")
    whole.write_bytes(sound)
    before = read_state(whole)
    for name in ("positions", "momenta", "cell", "numbers"):
        expect(np.array_equal(getattr(state, name), getattr(before, name)), f"other {name}")
    expect(state.about == before.about, "other settings")


def judge_records(path: Path, sound: bytes) -> None:
    with open(path, "rb") as file:
        records = Records(file, str(path))
        for place in range(len(records)):
            found = records.read(place)
            expect(torch.equal(found["positions"], numbered(place)), "other numbers")


def numbered(place: int) -> torch.Tensor:
    return torch.full((2, 3), float(place), dtype=torch.float64)


def judge_predictions(path: Path, sound: bytes) -> None:
    found, rows, names = read_predictions(path, [Target("gap")])
    expect(found.predicted.shape == (len(rows), 1) and len(names) == len(rows), "columns of other lengths")


def judge_born(path: Path, sound: bytes) -> None:
    primitive = PhonopyAtoms(symbols=["Na", "Cl"], cell=np.eye(3) * 4.0, scaled_positions=[[0, 0, 0], [0.5] * 3])
    waves = long_waves_of_file(path, primitive)
    expect(waves.born.shape == (2, 3, 3) and np.isfinite(waves.born).all(), "no Born charges")
    expect(np.isfinite(waves.dielectric).all(), "no dielectric tensor")


# --- all of them


def written(suffix: str, write: Callable[[Path], object]) -> bytes:
    """What a writer leaves in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return path.read_bytes()


def records_file(path: Path) -> None:
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for place in range(3):
            writer.add(*encode({"positions": numbered(place)}, 2))
        writer.finish({"volume": np.ones(3)}, {"cutoff": CUTOFF})


def state_file(path: Path) -> None:
    rng = np.random.default_rng(0)
    about = {"settings": {"timestep": 1.0}, "random": list(range(20)), "marks": {"trajectory": {"bytes": 100}}}
    arrays = (rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), np.eye(3) * 5.64, np.array([11, 17, 11, 17]))
    write_state(path, State(*arrays, integrator={"nsteps": np.array(5)}, about=about))


def checkpoint_file(path: Path) -> None:
    model = potential()
    optimiser = torch.optim.AdamW(model.parameters())
    content = {"epoch": 3, "state_dict": model.state_dict(), "optimizer_states": [optimiser.state_dict()]}
    TwoCheckpoints().save_checkpoint(content, path)


def kinds() -> list[Kind]:
    """Every kind; valid files are made anew, always the same."""
    rows = crystals()
    plain = extxyz()
    sound = (("sound.extxyz", plain),)
    as_text = {name: written(f".{name}", lambda path: ase.io.write(path, rows[0])) for name in ("cif", "vasp")}
    models = {
        "potential": potential(),
        "ensemble": Ensemble([potential(1), potential(2)], Calibration({"energy": 2.0, "forces": 1.5}, 9)),
        "property model": property_model(),
    }
    archive = spoil_archive({"model.json": spoil_json, "weights.safetensors": spoil_safetensors})
    settings = make_config({"model": {"backbone": BACKBONE}}).to_yaml().encode()
    short = b"training:\n  per_stage:\n    2: {lr: 1.0e-4}\nmodel:\n  charges:\n    init: {Na: 0.8, Cl: -0.8}\n"
    words = b"training.lr=1e-3\nmodel.backbone.name=painn\nmodel.charges.init.Na=0.8\ndata.split=formula\n"
    split = json.dumps({**SPLIT, "files": [{"file": "data.extxyz", "rows": 8, "sha256": "0" * 64}]}).encode()
    charges = f"charges: {json.dumps(CHARGES)}\nuncertainties: {{Na: 0.01, Cl: 0.02}}\n".encode()
    table = b"id,gap,volume\na,1.5,40\nb,-2.25,41\na,na,42\n"
    lines = b"row,id,n_atoms,gap,gap_predicted\n0,a,4,1.5,1.4\n1,b,4,,2.5\n"
    tensor = "1.1 0 0 0 1.1 0 0 0 1.1"
    born = f"# Z\n{'2.5 0 0 0 2.5 0 0 0 2.5'}\n{tensor}\n{tensor.replace('1.1', '-1.1')}\n".encode()
    beside = (("a.cif", as_text["cif"]), ("b.vasp", as_text["vasp"]))
    return [
        Kind("extended XYZ", "rows.extxyz", (plain,), spoil_text, judge_extxyz, sound),
        Kind("extended XYZ, packed", "rows.extxyz.gz", (gzip.compress(plain, mtime=0),), spoil_bytes, judge_crystals),
        Kind("CIF", "row.cif", (as_text["cif"],), spoil_text, judge_crystals),
        Kind("POSCAR", "row.vasp", (as_text["vasp"],), spoil_text, judge_crystals),
        Kind("HDF5 shard", "rows.h5", (written(".h5", lambda path: write_shard(path, rows)),), spoil_hdf5, judge_shard),
        Kind("id_prop.csv", "id_prop.csv", (table, table.split(b"\n", 1)[1]), spoil_text, judge_csv, beside),
        Kind("JSON of crystals", "rows.json", (pandas_table(rows), jarvis_table(rows)), spoil_json, judge_json),
        Kind("settings (YAML)", "my.yaml", (settings, short), spoil_text, judge_settings),
        Kind("--set", "words.txt", (words,), spoil_text, judge_words),
        *(
            Kind(name, "model.pt", (written(".pt", lambda path, m=model: save(m, path)),), archive, judge_model, sound)
            for name, model in models.items()
        ),
        Kind("checkpoint", "spoiled.ckpt", (written(".ckpt", checkpoint_file),), spoil_bytes, judge_checkpoint),
        Kind("split.json", "split.json", (split,), spoil_json, judge_split),
        Kind("charges (YAML)", "charges.yaml", (charges,), spoil_text, judge_charges),
        Kind("state of MD", "md.state", (written(".state", state_file),), spoil_safetensors, judge_state),
        Kind("cache of graphs", "graphs.bin", (written(".bin", records_file),), spoil_bytes, judge_records),
        Kind("predictions (CSV)", "predictions.csv", (lines,), spoil_text, judge_predictions),
        Kind("Born charges", "BORN", (born,), spoil_text, judge_born),
    ]
