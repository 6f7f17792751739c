"""The contract of torch-sim's models, by its own validator, and what is refused."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from ase import Atoms

from lrpot import LRCalculator
from lrpot.errors import ConfigError, StructureError, UnknownElementError
from tests.conftest import MakePotential
from tests.helpers_cli import rock_salt, small_model

torch_sim = pytest.importorskip("torch_sim", reason="not installed: pip install 'lrpot[torch-sim]'")

from lrpot.interfaces.torch_sim import TorchSimModel  # noqa: E402 (after the skip)

SINGLE = 1e-5  # relative, of a network in float32


def state_of(*cells: Atoms, dtype: torch.dtype = torch.float64) -> torch_sim.SimState:
    return torch_sim.io.atoms_to_state(list(cells), torch.device("cpu"), dtype)


def test_its_own_validator(make_potential: MakePotential) -> None:
    from torch_sim.models.interface import validate_model_outputs

    model = TorchSimModel(make_potential(charges="environment", elements=(14, 26)))
    validate_model_outputs(model, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_a_batch_has_the_numbers_of_its_cells(skin: float) -> None:
    """Skewed cells of unlike sizes; the second call finds other cells in their places."""
    model = TorchSimModel(small_model(), skin=skin)
    cells = [rock_salt(2, seed=0), rock_salt(1, seed=1), rock_salt(2, seed=2)]
    for batch in (cells, cells[::-1]):
        output = model(state_of(*batch))
        forces = output["forces"].split([len(atoms) for atoms in batch])
        for n, atoms in enumerate(batch):
            atoms.calc = LRCalculator(small_model())
            assert float(output["energy"][n]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
            np.testing.assert_allclose(forces[n].numpy(), atoms.get_forces(), atol=1e-10)
            np.testing.assert_allclose(output["stress"][n].numpy(), atoms.get_stress(voigt=False), atol=1e-10)
        assert output["charges"].shape == (sum(map(len, batch)),)


def test_total_charge(make_potential: MakePotential) -> None:
    """Of every cell; electrons that flow see it."""
    potential = make_potential(charges="equilibration", elements=(11, 17))
    cells = [rock_salt(1, seed=0), rock_salt(2, seed=1)]
    neutral = TorchSimModel(potential)(state_of(*cells))["energy"]
    charged = TorchSimModel(potential, total_charge=1.0)(state_of(*cells))
    for n, atoms in enumerate(cells):
        atoms.info["charge"] = 1.0
        atoms.calc = LRCalculator(potential)
        assert float(charged["energy"][n]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert abs(float(charged["energy"][n] - neutral[n])) > 1e-3  # eV
    sums = [float(q.sum()) for q in charged["charges"].split([len(atoms) for atoms in cells])]
    assert sums == pytest.approx([1.0, 1.0], abs=1e-9)


def test_float32() -> None:
    atoms = rock_salt()
    double = TorchSimModel(small_model())(state_of(atoms))
    single = TorchSimModel(small_model(), dtype=torch.float32)(state_of(atoms, dtype=torch.float32))
    assert all(value.dtype == torch.float32 for value in single.values())
    for name, value in double.items():
        torch.testing.assert_close(single[name].double(), value, rtol=SINGLE, atol=SINGLE)


def test_only_what_is_asked_for() -> None:
    model = TorchSimModel(small_model("none"), compute_forces=False, compute_stress=False)
    assert model(state_of(rock_salt())).keys() == {"energy"}


def test_what_is_refused() -> None:
    model = TorchSimModel(small_model())
    with pytest.raises(UnknownElementError, match="K"):
        model(state_of(Atoms("KCl", [[0, 0, 0], [3, 0, 0]], cell=[6, 6, 6], pbc=True)))
    with pytest.raises(StructureError, match="apart"):
        model(state_of(Atoms("NaCl", [[0, 0, 0], [0.01, 0, 0]], cell=[6, 6, 6], pbc=True)))
    with pytest.raises(ConfigError, match="dtype"):
        TorchSimModel(small_model(), dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"^total_charge = nan e: must be finite$"):
        TorchSimModel(small_model(), total_charge=float("nan"))


def test_without_torch_sim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lrpot.interfaces.torch_sim")
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    with pytest.raises(ConfigError, match=r"torch-sim cannot be loaded .* pip install 'lrpot\[torch-sim\]'"):
        importlib.import_module("lrpot.interfaces.torch_sim")
