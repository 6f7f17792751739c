"""LRCalculator: a model as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from lrpot.data.neighbours import NeighbourList
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.model_file import check_device, load
from lrpot.potential import Potential

# Properties that the calculator of an ensemble has beside those of a single model.
UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty")


class LRCalculator(Calculator):
    """Energies, forces, stress and charges of a fitted model, for anything in ASE that takes a calculator.

    atoms.calc = LRCalculator("nacl.pt")
    atoms.get_potential_energy()          # eV
    atoms.calc.results["charges"]         # (N,), e
    atoms.calc.results["energy_long"]     # eV; energy = energy_short + energy_long

    Of an ensemble the results are means, and two more properties say how uncertain they are:

    atoms.calc.results["energy_uncertainty"]    # eV/atom
    atoms.calc.results["forces_uncertainty"]    # (N,), eV/A, how far each force is likely to be off
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress", "charges"]

    def __init__(
        self, model: str | Path | Potential, *, device: str = "cpu", dtype: str = "float64", skin: float = 0.0
    ) -> None:
        """
        Args:
            model: file of a model, the name of one that comes with lrpot, or the model itself (it is then moved to
                `device` and `dtype`).
            device: cpu, cuda, cuda:1, ...
            dtype: precision of network and structure factors, float64 or float32; energies are summed in float64.
            skin: A; neighbours are looked for this far beyond the cutoff and kept until atoms moved about half of it.
                0.5 saves MD most of that search and changes no result; 0 looks for them in every step.
        Raises:
            ModelFileError: not a model of lrpot. ConfigError: an unknown precision or device, or a negative skin.
        """
        super().__init__()
        if dtype not in ("float64", "float32"):
            raise ConfigError(f"dtype = {dtype!r} is not known; use float64 or float32")
        precision = getattr(torch, dtype)
        if not isinstance(model, Potential):
            model = load(model, device=device)
        model = model.set_precision(precision, long_range=precision).to(check_device(device))
        self.model = model.eval().requires_grad_(False)
        if len(model.members) > 1:
            # of this calculator only: asked of a single model, ASE tells that it has no such property
            self.implemented_properties = [*type(self).implemented_properties, *UNCERTAINTIES]  # type: ignore[misc]
        self.device = torch.device(device)
        self.neighbours = NeighbourList(self.model.cutoff, skin)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; the total charge in `atoms.info` counts too."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and atoms.info.get("charge") != self.atoms.info.get("charge"):
            changes = [*changes, "charge"]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`: energy, free_energy, energy_short, energy_long (eV), forces (eV/A), charges (e, if the model
        has any), energy_uncertainty (eV/atom) and forces_uncertainty (eV/A) of an ensemble, and stress (eV/A^3, Voigt)
        if it is asked for.

        Raises:
            UnknownElementError, StructureError: name the atom and what is wrong.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        neighbours = self.neighbours if self.neighbours.skin else None
        batch = to_structure(
            atoms, self.model.cutoff, elements=self.model.elements, neighbours=neighbours, labels=False
        )
        batch = batch.to(self.device)
        output = self.model(batch, stress="stress" in properties)
        energy = float(output["energy"][0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energy_short": float(output["energy_short"][0]),
            "energy_long": float(output["energy_long"][0]),
            "forces": output["forces"].cpu().numpy(),
        }
        if "stress" in output:
            self.results["stress"] = full_3x3_to_voigt_6_stress(output["stress"][0].cpu().numpy())
        if "charges" in output:
            self.results["charges"] = np.asarray(output["charges"][:, 0].cpu())
        if "energy_uncertainty" in output:
            self.results["energy_uncertainty"] = float(output["energy_uncertainty"][0])
            self.results["forces_uncertainty"] = output["forces_uncertainty"].cpu().numpy()
