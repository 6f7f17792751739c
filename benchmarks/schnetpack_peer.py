"""SchNetPack's PaiNN as a peer: its network, its ASE calculator, and ours with the same weights."""

from __future__ import annotations

import tempfile
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.data.dataloader
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor, nn

from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.interfaces.schnetpack import convert_schnetpack
from lrpot.potential import Potential
from lrpot.structure import Structure, batch_index, edge_vectors

# SchNetPack 2.0.4 imports a name that torch no longer has
torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import schnetpack as spk
    from schnetpack.interfaces import SpkCalculator

CUTOFF = 5.0  # A
RADIAL_BASIS = 20
NACL = (11, 17)


def make_network(features: int, interactions: int = 3) -> nn.Module:
    """A NeuralNetworkPotential with random weights, energies in eV, ready for energies and forces."""
    torch.manual_seed(0)
    painn = spk.representation.PaiNN(
        features, interactions, spk.nn.GaussianRBF(RADIAL_BASIS, CUTOFF), spk.nn.CosineCutoff(CUTOFF)
    )
    return spk.model.NeuralNetworkPotential(
        painn,
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(features, output_key="energy"), spk.atomistic.Forces()],
    ).eval()


def same_in_lrpot(network: nn.Module, kernel: str = "none") -> Potential:
    """Our potential with the same short-range part; with kernel "coulomb", charges of +-1 e beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best_model"
        torch.save(network, path)
        converted = convert_schnetpack(path, elements=("Na", "Cl"), energy_unit="eV")
    if kernel == "none":
        return converted
    backbone = network.representation
    settings: dict[str, Any] = {
        "model.kernel.form": kernel,
        "model.backbone.features": backbone.n_atom_basis,
        "model.backbone.interactions": backbone.n_interactions,
        "model.backbone.radial_basis": RADIAL_BASIS,
        "model.backbone.cutoff": CUTOFF,
        "model.backbone.cutoff_function": "cosine",
        "model.backbone.epsilon": backbone.mixing[0].epsilon,
    }
    model = build_potential(make_config(None, settings).model, NACL)
    model.short.load_state_dict(converted.short.state_dict())
    assert model.long is not None
    model.long.charges.set_values(dict(zip(NACL, (1.0, -1.0), strict=True)))
    return model


def inputs_of(structure: Structure, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What SchNetPack's network reads: the same atoms and edges."""
    neighbour, centre = structure.edge_index
    apart = structure.positions[neighbour] - structure.positions[centre]
    names = spk.properties
    index = batch_index(structure)
    return {
        names.Z: structure.numbers,
        names.R: structure.positions.to(dtype),
        names.offsets: (edge_vectors(structure) - apart).to(dtype),
        names.idx_i: centre,
        names.idx_j: neighbour,
        names.idx_m: index,
        names.n_atoms: torch.bincount(index),
        names.cell: structure.cell.to(dtype),
        names.pbc: structure.pbc,
    }


def energy_and_forces(network: nn.Module, structure: Structure) -> Callable[[], dict[str, Tensor]]:
    """A call of its network without its neighbour list."""
    inputs = inputs_of(structure)
    return lambda: network(dict(inputs))


def calculator(network: nn.Module) -> Calculator:
    """Its ASE calculator in float32, with the fastest of its neighbour lists that needs no skin."""

    class InMemory(SpkCalculator):
        def _load_model(self, model_file: str) -> nn.Module:
            return network

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return InMemory("in memory", spk.transform.MatScipyNeighborList(CUTOFF), energy_unit="eV", position_unit="Ang")


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    atoms.rattle(0.05, seed=seed)
    return atoms
