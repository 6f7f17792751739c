"""LRCalculator: a model as an ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from lrpot.charges.polarisation import dipoles
from lrpot.coverage import OutsideTrainingWarning, beyond
from lrpot.data.labels import open_directions
from lrpot.data.neighbours import NeighbourList
from lrpot.data.readers import to_structure
from lrpot.errors import StructureError
from lrpot.model_file import coverages, load_for_inference
from lrpot.potential import Potential

# Properties that need charges, and those that need the calculator of an ensemble.
OF_CHARGES = ("charges", "dipole")
UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty")


class UndefinedProperty(StructureError, PropertyNotImplementedError):
    """A property that this crystal, slab or molecule does not have. ASE's tools go on without it."""


class LRCalculator(Calculator):
    """Energies, forces, stress and charges of a fitted model, for anything in ASE that takes a calculator.

    atoms.calc = LRCalculator("nacl.pt")
    atoms.get_potential_energy()          # eV
    atoms.calc.results["charges"]         # (N,), e
    atoms.calc.results["energy_long"]     # eV; energy = energy_short + energy_long

    Of an ensemble the results are means, and two more properties say how uncertain they are:

    atoms.calc.results["energy_uncertainty"]    # eV/atom
    atoms.calc.results["forces_uncertainty"]    # (N,), eV/A, how far each force is likely to be off

    Of a model that knows the extremes of its training set, another says whether the crystal lies outside (see
    `lrpot.coverage`); the first time that it does, there is a warning with the reason:

    atoms.calc.results["outside_training"]      # bool

    There are no `stresses`: neither the messages between atoms nor the waves of the reciprocal sum belong to one atom,
    so their virial can be divided in any way.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        *OF_CHARGES,
    ]

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str = "cpu",
        dtype: str = "float64",
        skin: float = 0.0,
        stress: bool = False,
    ) -> None:
        """
        Args:
            model: file of a model, the name of one that comes with lrpot, or the model itself (it is then moved to
                `device` and `dtype`).
            device: cpu, cuda, cuda:1, ...
            dtype: precision of network and structure factors, float64 or float32; energies are summed in float64.
            skin: A; neighbours are looked for this far beyond the cutoff and kept until atoms moved about half of it.
                0.5 saves MD most of that search and changes no result; 0 looks for them in every step.
            stress: compute the stress of every crystal along with its forces, and not only when it is asked for; what
                asks for both one after the other, such as MD at constant pressure, then needs one evaluation, not two.
        Raises:
            ModelFileError: not a model of lrpot. ConfigError: an unknown precision or device, or a negative skin.
        """
        super().__init__()
        self.model = load_for_inference(model, device=device, dtype=dtype)
        # of this calculator only: asked for what its model lacks, ASE tells that there is no such property
        lacking = () if all(member.long is not None for member in self.model.members) else OF_CHARGES
        more = UNCERTAINTIES if len(self.model.members) > 1 else ()
        properties = [name for name in type(self).implemented_properties if name not in lacking]
        self.implemented_properties = [*properties, *more]  # type: ignore[misc]
        self.device = torch.device(device)
        self.neighbours = NeighbourList(self.model.cutoff, skin)
        self.with_stress = stress
        self.outside: str | None = None  # why the first structure was that lay outside the training set

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation, to the last bit; the total charge in `atoms.info` counts too.

        Args:
            tol: is ASE's, and not looked at: rounding it away takes longer than all else between two steps of MD.
        """
        before = self.atoms
        if before is None:
            return list(all_changes)
        same = {
            "positions": np.array_equal(before.positions, atoms.positions),
            "numbers": np.array_equal(before.numbers, atoms.numbers),
            "cell": np.array_equal(before.cell.array, atoms.cell.array),
            "pbc": np.array_equal(before.pbc, atoms.pbc),
            "charge": before.info.get("charge") == atoms.info.get("charge"),
        }
        return [name for name, unchanged in same.items() if not unchanged]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`: energy, free_energy, energy_short, energy_long (eV), forces (eV/A), charges (e, if the model
        has any), energy_uncertainty (eV/atom) and forces_uncertainty (eV/A) of an ensemble, and if they are asked for:

        - stress: eV/A^3, Voigt;
        - energies: (N,), eV, which add up to the energy; see `Potential.atom_energies`;
        - dipole: (3,), e A, of the charges, about the mean of all positions: of a molecule, and of a slab its part
          along the normal. Charges that the model learned as screened by the electrons give a screened dipole.

        Raises:
            UnknownElementError, StructureError: name the atom and what is wrong.
            UndefinedProperty: a stress or a dipole of atoms that have none.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        _check_defined(atoms, properties)
        neighbours = self.neighbours if self.neighbours.skin else None
        batch = to_structure(
            atoms, self.model.cutoff, elements=self.model.elements, neighbours=neighbours, labels=False
        )
        known = coverages(self.model)
        outside = [reason for seen in known if (reason := beyond(seen, batch)) is not None]
        batch = batch.to(self.device)
        output = self.model(batch, stress="stress" in properties or (self.with_stress and bool(atoms.pbc.all())))
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
            charges = output["charges"][:, 0]
            self.results["charges"] = np.asarray(charges.cpu())
            if "dipole" in properties:
                along = dipoles(batch, charges)[0].cpu().numpy()
                self.results["dipole"] = open_directions(atoms.cell.array, atoms.pbc).T @ along
        if "energies" in properties:
            self.results["energies"] = self.model.atom_energies(batch).cpu().numpy()
        if known:
            self.results["outside_training"] = bool(outside)
        if outside and self.outside is None:
            self.outside = outside[0]
            warnings.warn(f"{outside[0]}: the model may be wrong there", OutsideTrainingWarning, stacklevel=2)
        if "energy_uncertainty" in output:
            self.results["energy_uncertainty"] = float(output["energy_uncertainty"][0])
            self.results["forces_uncertainty"] = output["forces_uncertainty"].cpu().numpy()


def _check_defined(atoms: Atoms, properties: Sequence[str]) -> None:
    """
    Raises:
        UndefinedProperty: one of the properties is none of these atoms.
    """
    if "stress" in properties and not atoms.pbc.all():
        raise UndefinedProperty("stress is defined only for a crystal that is periodic in all three directions")
    if "dipole" in properties and not open_directions(atoms.cell.array, atoms.pbc).any():
        raise UndefinedProperty(
            f"pbc = {atoms.pbc.tolist()}: the dipole of what repeats depends on the choice of the cell; set pbc to "
            "False for a molecule, or to two directions for a slab"
        )
