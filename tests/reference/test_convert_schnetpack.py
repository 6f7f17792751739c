"""`lrpot convert schnetpack`: the converted model is SchNetPack's, energy for energy and force for force."""

from __future__ import annotations

import builtins
import os
import subprocess
import typing
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import torch.utils.data.dataloader
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor, nn

from lrpot import LRCalculator, fit
from lrpot.errors import UnknownElementError
from lrpot.interfaces.schnetpack import ENERGY_UNITS, LENGTH_UNITS
from lrpot.structure import Structure
from tests.helpers_cli import call_cli, one_error_line, run_cli

TOLERANCE = 1e-6  # relative; SchNetPack's Gaussians are made in float32
# of forces in float32, relative to the largest: each code by itself is up to 1.6e-6 away from float64
ROUNDING = 3e-6
CUTOFF = 4.9  # A; not a number of float32
ELEMENTS = (11, 17)
OPTIONS = ("--elements", "Na,Cl", "--energy-unit", "eV")


def potential(
    schnetpack, cutoff: float = CUTOFF, *, n_rbf: int = 12, outputs: tuple = (), after: tuple | None = None, **painn
):
    """A NeuralNetworkPotential of SchNetPack with random weights and offsets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        settings = {
            "radial_basis": schnetpack.nn.GaussianRBF(n_rbf, cutoff),
            "cutoff_fn": schnetpack.nn.CosineCutoff(cutoff),
        } | painn
        representation = schnetpack.representation.PaiNN(n_atom_basis=16, n_interactions=3, **settings)
        offsets = schnetpack.transform.AddOffsets("energy", add_mean=True, add_atomrefs=True)
        offsets.mean = torch.tensor([0.7])
        offsets.atomref = torch.linspace(-3.0, 1.0, 100, dtype=torch.float64)
        model = schnetpack.model.NeuralNetworkPotential(
            representation,
            input_modules=[schnetpack.atomistic.PairwiseDistances()],
            output_modules=list(outputs)
            or [schnetpack.atomistic.Atomwise(16, output_key="energy"), schnetpack.atomistic.Forces()],
            postprocessors=[schnetpack.transform.CastTo64(), offsets] if after is None else list(after),
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.2)  # biases start at zero and would hide
    return model.eval()


def theirs(
    schnetpack, model: nn.Module, structure: Structure, dtype: str, length: float = 1.0
) -> tuple[float, np.ndarray]:
    """Energy and forces of SchNetPack, in its units; the structure is in A."""
    precision, names = getattr(torch, dtype), schnetpack.properties
    neighbour, centre = structure.edge_index
    offsets = structure.edge_shift @ structure.cell[0]
    inputs: dict[str, Tensor] = {
        names.Z: structure.numbers,
        names.R: structure.positions / length,
        names.offsets: offsets / length,
        names.idx_i: centre,
        names.idx_j: neighbour,
        names.idx_m: torch.zeros_like(structure.numbers),
        names.n_atoms: torch.tensor([structure.num_nodes]),
    }
    # differences of exact positions, as lrpot takes them; in float32 they alone would be 3e-6 of the forces
    cast = model.input_modules[0].register_forward_hook(
        lambda _module, _arguments, output: output | {names.Rij: output[names.Rij].to(precision)}
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(precision)  # its PaiNN makes vectors in the default precision
    try:
        output = model.to(precision)(inputs)
    finally:
        torch.set_default_dtype(default)
        cast.remove()
        model.float()
    return float(output["energy"].detach()), output["forces"].detach().double().numpy()


def to_atoms(s: Structure) -> Atoms:
    return Atoms(s.numbers.numpy(), s.positions.numpy(), cell=s.cell[0].numpy(), pbc=True)


def convert(model: nn.Module, folder: Path, *options: str) -> Path:
    torch.save(model, folder / "best_model")
    assert run_cli("convert", "schnetpack", folder / "best_model", folder / "out.pt", *(options or OPTIONS)) == 0
    return folder / "out.pt"


def compare(
    schnetpack, model: nn.Module, file: Path, structure: Structure, dtype: str, energy: float = 1.0, length=1.0
) -> None:
    e, f = theirs(schnetpack, model, structure, dtype, length)
    atoms = to_atoms(structure)
    atoms.calc = LRCalculator(file, dtype=dtype)
    assert atoms.get_potential_energy() == pytest.approx(energy * e, rel=TOLERANCE)
    expected = f * energy / length
    assert np.abs(expected).max() > 1e-3
    tolerance = TOLERANCE if dtype == "float64" else ROUNDING
    assert np.abs(atoms.get_forces() - expected).max() < tolerance * np.abs(expected).max()


VARIANTS: dict[str, dict] = {
    "plain": {},
    "shared interactions": {"shared_interactions": True},
    "shared filters": {"shared_filters": True},
    "all shared, small embedding": {"shared_filters": True, "shared_interactions": True, "max_z": 18},
    "module for silu": {"activation": nn.SiLU()},
    "round norms": {"epsilon": 1e-2},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_energies_and_forces_are_the_same(schnetpack, variant: str, dtype: str, tmp_path: Path, random_crystal) -> None:
    model = potential(schnetpack, **VARIANTS[variant])
    file = convert(model, tmp_path)
    for seed, n in ((1, 6), (2, 1)):
        crystal = random_crystal(seed, n, cutoff=CUTOFF, left_handed=seed == 1, unwrapped=seed == 1)
        if n == 1:  # forces are zero by symmetry
            e, _ = theirs(schnetpack, model, crystal, dtype)
            atoms = to_atoms(crystal)
            atoms.calc = LRCalculator(file, dtype=dtype)
            assert atoms.get_potential_energy() == pytest.approx(e, rel=TOLERANCE)
        else:
            compare(schnetpack, model, file, crystal, dtype)


@pytest.mark.parametrize(("energy", "length"), [("kcal/mol", "Ang"), ("Ha", "Bohr"), ("kJ/mol", "nm")])
def test_units_are_converted(schnetpack, energy: str, length: str, tmp_path: Path, random_crystal) -> None:
    factor = LENGTH_UNITS[length]
    model = potential(schnetpack, CUTOFF / factor)
    options = ("--elements", "Cl, Na", "--energy-unit", energy, "--length-unit", length)
    crystal = random_crystal(3, 5, cutoff=CUTOFF * (1 - 1e-6))
    compare(schnetpack, model, convert(model, tmp_path, *options), crystal, "float64", ENERGY_UNITS[energy], factor)


def test_factors_of_units() -> None:
    assert ENERGY_UNITS["kcal/mol"] == pytest.approx(0.0433641, rel=1e-6)
    assert ENERGY_UNITS["kJ/mol"] == pytest.approx(0.0433641 / 4.184, rel=1e-6)
    assert ENERGY_UNITS["Ha"] == pytest.approx(27.211386, rel=1e-6) == units.Hartree
    assert {"Ang": 1.0, "nm": 10.0, "Bohr": pytest.approx(0.52917721, rel=1e-6)} == LENGTH_UNITS


@pytest.mark.parametrize("what", ["mean", "atomrefs", "none", "switched off"])
def test_offsets(schnetpack, what: str, tmp_path: Path, random_crystal) -> None:
    after = []
    if what != "none":
        offsets = schnetpack.transform.AddOffsets(
            "energy", add_mean=what != "atomrefs", add_atomrefs=what == "atomrefs"
        )
        offsets.mean, offsets.atomref = torch.tensor([1.5]), torch.linspace(2.0, 9.0, 100)
        after = [schnetpack.transform.CastTo64(), offsets]
    model = potential(schnetpack, after=tuple(after))
    model.do_postprocessing = what != "switched off"
    compare(schnetpack, model, convert(model, tmp_path), random_crystal(4, 4, cutoff=CUTOFF), "float64")


def test_elements_that_were_not_named_are_refused(schnetpack, tmp_path: Path) -> None:
    file = convert(potential(schnetpack), tmp_path, "--elements", "Na", "--energy-unit", "eV")
    atoms = Atoms("Cl", cell=[4, 4, 4], pbc=True)
    atoms.calc = LRCalculator(file)
    with pytest.raises(UnknownElementError, match="element Cl"):
        atoms.get_potential_energy()


def test_stretched_gaussians_would_be_seen(schnetpack, tmp_path: Path, random_crystal) -> None:
    """The comparison above can fail: an edge beyond the cutoff aside, a slightly other network is seen."""
    model = potential(schnetpack)
    file = convert(model, tmp_path)
    with torch.no_grad():
        model.representation.filter_net.weight.mul_(1.0 + 1e-4)
    with pytest.raises(AssertionError):
        compare(schnetpack, model, file, random_crystal(1, 6, cutoff=CUTOFF), "float64")


def _schnet(schnetpack) -> nn.Module:
    model = potential(schnetpack)
    basis, cutoff = schnetpack.nn.GaussianRBF(12, CUTOFF), schnetpack.nn.CosineCutoff(CUTOFF)
    model.representation = schnetpack.representation.SchNet(16, 2, basis, cutoff)
    return model


def _atomwise(schnetpack, **settings) -> nn.Module:
    return potential(
        schnetpack,
        outputs=(schnetpack.atomistic.Atomwise(16, output_key="energy", **settings), schnetpack.atomistic.Forces()),
    )


def _two_epsilons(schnetpack) -> nn.Module:
    model = potential(schnetpack)
    model.representation.mixing[1].epsilon = 1e-2
    return model


REFUSED: dict[str, tuple[Callable, str]] = {
    "schnet": (_schnet, "its representation is SchNet, not PaiNN"),
    "cutoff": (lambda s: potential(s, cutoff_fn=s.nn.MollifierCutoff(CUTOFF)), "uses MollifierCutoff instead"),
    "basis": (lambda s: potential(s, radial_basis=s.nn.BesselRBF(12, CUTOFF)), "uses BesselRBF instead"),
    "grid": (lambda s: potential(s, radial_basis=s.nn.GaussianRBF(12, 5.5)), "not spread evenly"),
    "start": (lambda s: potential(s, radial_basis=s.nn.GaussianRBF(12, CUTOFF, start=0.5)), "not spread evenly"),
    "activation": (lambda s: potential(s, activation=s.nn.shifted_softplus), "an activation is shifted_softplus"),
    "epsilon": (_two_epsilons, "epsilon of its mixing is not the same in all blocks: [1e-08, 0.01]"),
    "rows": (lambda s: potential(s, max_z=130), "its embedding has 130 rows"),
    "readout": (lambda s: _atomwise(s, activation=s.nn.shifted_softplus), "an activation is shifted_softplus"),
    "layers": (lambda s: _atomwise(s, n_layers=3), "its readout has layers of 8, 4, 1 instead of 8, 1"),
    "mean": (lambda s: _atomwise(s, aggregation_mode="avg"), "its readout gives 1 numbers by 'avg'"),
    "dipole": (lambda s: potential(s, outputs=(s.atomistic.DipoleMoment(16),)), "it contains DipoleMoment"),
    "scale": (lambda s: potential(s, after=(s.transform.ScaleProperty("energy"),)), "it contains ScaleProperty"),
    "none": (lambda s: potential(s, outputs=(s.atomistic.Forces(),)), "it has 0 Atomwise readouts"),
    "other": (
        lambda s: potential(s, after=(s.transform.AddOffsets("dipole", add_mean=True),)),
        "its AddOffsets is for 'dipole', not for 'energy'",
    ),
    "intensive": (
        lambda s: potential(s, after=(s.transform.AddOffsets("energy", add_mean=True, is_extensive=False),)),
        "intensive property",
    ),
    "zmax": (
        lambda s: potential(s, after=(s.transform.AddOffsets("energy", add_atomrefs=True, zmax=10),)),
        "its single-atom energies end before atomic number 11",
    ),
    "state": (lambda s: potential(s).state_dict(), "holds OrderedDict, no NeuralNetworkPotential"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_counterpart_is_refused(schnetpack, what: str, tmp_path: Path, capsys) -> None:
    make, message = REFUSED[what]
    torch.save(make(schnetpack), tmp_path / "best_model")
    assert run_cli("convert", "schnetpack", tmp_path / "best_model", tmp_path / "out.pt", *OPTIONS) == 1
    one_error_line(capsys.readouterr().err, ["best_model: ", message])
    assert not (tmp_path / "out.pt").exists()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, function: typing.Any, *arguments: object) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> tuple[typing.Any, tuple[object, ...]]:
        return self.made_by


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("function", [os.mkdir, subprocess.call, builtins.exec, os.path.join])
def test_nothing_in_a_file_runs(function, inside: bool, schnetpack, tmp_path: Path, capsys) -> None:
    """Alone, and as an attribute of a sound model."""
    made = tmp_path / "made"
    arguments: object = {
        os.mkdir: str(made),
        subprocess.call: ["mkdir", str(made)],
        builtins.exec: f"import os; os.mkdir({str(made)!r})",
        os.path.join: str(made),
    }[function]
    model = potential(schnetpack)
    bomb = Bomb(function, arguments)
    model.representation.note = bomb
    torch.save(model if inside else bomb, tmp_path / "best_model")
    assert run_cli("convert", "schnetpack", tmp_path / "best_model", tmp_path / "out.pt", *OPTIONS) == 1
    one_error_line(capsys.readouterr().err, ["best_model: asks for", "not loaded"])
    assert not made.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*OPTIONS[:1], "Na,Xx", *OPTIONS[2:]), ("elements Xx: give symbols",)),
        ((*OPTIONS[:1], ",", *OPTIONS[2:]), ("elements (none): give symbols",)),
        (OPTIONS, ("best_model: cannot be read", "SchNetPack 2.0")),
    ],
)
def test_bad_input(options: tuple[str, ...], words: tuple[str, ...], schnetpack, tmp_path: Path, capsys) -> None:
    (tmp_path / "best_model").write_text("no model at all")
    assert run_cli("convert", "schnetpack", tmp_path / "best_model", tmp_path / "out.pt", *options) == 1
    one_error_line(capsys.readouterr().err, words)


def test_files_are_not_replaced_and_not_missing(tmp_path: Path, capsys, schnetpack) -> None:
    (tmp_path / "out.pt").touch()
    assert run_cli("convert", "schnetpack", tmp_path / "best_model", tmp_path / "out.pt", *OPTIONS) == 1
    one_error_line(capsys.readouterr().err, ["out.pt: exists already", "--overwrite"])
    assert run_cli("convert", "schnetpack", tmp_path / "no", tmp_path / "new.pt", *OPTIONS) == 1
    one_error_line(capsys.readouterr().err, ["no: no such file"])


def test_a_converted_model_is_a_start_for_a_fit(schnetpack, tmp_path: Path, random_crystal) -> None:
    """Labels are those of SchNetPack on another level: the fit begins with nothing wrong but rounding."""
    model = potential(schnetpack)
    file, rows = convert(model, tmp_path), []
    for seed in range(12):
        crystal = random_crystal(seed, 5 + seed % 2, cutoff=CUTOFF)
        energy, forces = theirs(schnetpack, model, crystal, "float64")
        atoms = to_atoms(crystal)
        level = 2.0 * sum(atoms.numbers == 11) - 3.0 * sum(atoms.numbers == 17)
        atoms.calc = SinglePointCalculator(atoms, energy=energy + level, forces=forces)
        rows.append(atoms)
    ase.io.write(tmp_path / "rows.extxyz", rows, format="extxyz")
    settings = {"training.dtype": "float64", "training.max_epochs": 1}
    result = fit(tmp_path / "rows.extxyz", from_model=file, out=tmp_path / "run", settings=settings, verbose=False)
    start = result.stages[0]["validation"]
    assert start["forces"]["mae"] < 1e-5  # eV/A; labels go through a text file
    assert start["energy"]["mae"] < 1e-5  # eV/atom
    assert result.model.long is None


@pytest.mark.slow
def test_in_a_process_that_has_not_imported_schnetpack(schnetpack, tmp_path: Path) -> None:
    """The name that torch no longer has is put there by the converter itself."""
    torch.save(potential(schnetpack), tmp_path / "best_model")
    code, output, errors = call_cli("convert", "schnetpack", "best_model", "out.pt", *OPTIONS, cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert output == "wrote out.pt\n"


def test_without_schnetpack_it_says_what_to_install(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best_model").touch()
    monkeypatch.setitem(__import__("sys").modules, "schnetpack.model", None)
    assert run_cli("convert", "schnetpack", tmp_path / "best_model", tmp_path / "out.pt", *OPTIONS) == 1
    one_error_line(capsys.readouterr().err, ["needs SchNetPack", "pip install schnetpack==2.0.4"])
