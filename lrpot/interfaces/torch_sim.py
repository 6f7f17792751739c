"""A model as a torch-sim model: relaxation and MD of many cells in one batch, on one device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrpot.data.neighbours import NeighbourList
from lrpot.data.readers import check_elements
from lrpot.errors import ConfigError
from lrpot.model_file import load_for_inference
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, make_structure

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise ConfigError(
        f"torch-sim cannot be loaded ({error}); install it with pip install 'lrpot[torch-sim]', into the environment "
        "of this Python"
    ) from error


class TorchSimModel(ModelInterface):
    """A fitted model for torch-sim: `torch_sim.optimize`, `torch_sim.integrate`, `torch_sim.static`.

    model = TorchSimModel("nacl.pt", device="cuda")
    state = torch_sim.optimize(atoms_list, model, optimizer=torch_sim.optimizers.fire)

    All cells of a state are one batch of the network and of the reciprocal sum.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
        skin: float = 0.0,
        total_charge: float = 0.0,
    ) -> None:
        """
        Args:
            model: file of a model, the name of one that comes with lrpot, or the model itself (it is then moved to
                `device` and `dtype`).
            device: cpu, cuda, cuda:1, ...
            dtype: precision of network, structure factors, and results.
            compute_forces: whether to.
            compute_stress: whether to; stress exists only in cells that are periodic.
            skin: A, of the neighbour list of each cell; see `LRCalculator`.
            total_charge: e, of every cell. A state of torch-sim has no charges, and those in `atoms.info` are lost on
                the way into it: cells of unlike charges need a model each.
        Raises:
            ModelFileError: not a model of lrpot. ConfigError: an unknown precision or device, a negative skin, or a
                charge that is not finite.
        """
        super().__init__()
        if not math.isfinite(total_charge):
            raise ConfigError(f"total_charge = {total_charge:g} e: must be finite")
        self.model = load_for_inference(model, device=device, dtype=dtype)
        self.skin = skin
        self.total_charge = total_charge
        # by place in the batch; a list notices when another cell has come to its place
        self._neighbours = [NeighbourList(self.model.cutoff, skin)]
        self._device = torch.device(device)
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Energies and their derivatives.

        Args:
            state: cells of torch-sim, or their attributes in a dictionary; not changed.
        Returns:
            dict: energy (G,), eV; forces (N, 3), eV/A; stress (G, 3, 3), eV/A^3, positive under tension, if asked for;
            and charges (N,), e, if the model has any.
        Raises:
            UnknownElementError, StructureError: say what is wrong.
        """
        if isinstance(state, dict):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        batch = collate(self._structures(state)).to(self._device)
        output = self.model(batch, forces=self._compute_forces, stress=self._compute_stress)
        found = {name: output[name] for name in ("energy", "forces", "stress") if name in output}
        if "charges" in output:
            found["charges"] = output["charges"][:, 0]
        return {name: value.detach().to(self._dtype) for name, value in found.items()}

    def _structures(self, state: SimState) -> list[Structure]:
        """The cells, with edges."""
        counts = state.n_atoms_per_system.tolist()
        numbers, positions = state.atomic_numbers.cpu(), state.positions.detach().cpu()
        check_elements(numbers.numpy(), self.model.elements)
        pbc = torch.as_tensor(state.pbc).cpu().expand(3)
        while len(self._neighbours) < len(counts):
            self._neighbours.append(NeighbourList(self.model.cutoff, self.skin))
        parts = zip(numbers.split(counts), positions.split(counts), state.row_vector_cell.detach().cpu(), strict=True)
        return [
            neighbours.update(make_structure(z, r, cell, pbc, total_charge=self.total_charge))
            for (z, r, cell), neighbours in zip(parts, self._neighbours, strict=False)
        ]
