"""Which engine computes which structures of a batch, and the weights w_k of its sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpot.errors import ConfigError, StructureError
from lrpot.kspace.lattice import MAX_MODES, KLattice, check_number, k_lattice, no_wave_vector, reciprocal_cell
from lrpot.kspace.nufft import Mesh, Nufft
from lrpot.kspace.quadratic import Engine
from lrpot.kspace.separable import Separable, most_structures
from lrpot.kspace.system import System

# Engine auto: seconds on two cores in float32, from benchmarks/kspace.py; float64 takes about twice as long.
SECONDS_PER_PHASE = 3.0e-9  # separable: sine and cosine of one phase, and what is done with them
SECONDS_PER_PRODUCT = 2.5e-11  # separable: one multiplication in its three matrix products
SECONDS_PER_TAP = 1.5e-9  # nufft: one point of one atom's window
SECONDS_PER_POINT = 9.0e-9  # nufft: one point of the mesh
SECONDS_TO_START = 0.25e-3  # nufft: a call, beyond what one of separable takes

# Below this nufft is never faster, and its mesh need not be chosen.
FEW_ATOMS = 100

Phi = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Structures that one engine computes together.

    Attributes:
        engine: how.
        weights: (b, ...), eV/e^2, in the engine's shape.
        structures: (b,) which.
        atoms: (b, n) which; None if all, in order.
    """

    engine: Engine
    weights: Tensor
    structures: Tensor
    atoms: Tensor | None

    def of_atoms(self, values: Tensor) -> Tensor:
        """(b, n, X) from (N, X)."""
        return values.reshape(len(self.structures), -1, values.shape[1]) if self.atoms is None else values[self.atoms]

    def rows(self) -> Tensor | slice:
        """The atoms as an index of an array of N rows."""
        return slice(None) if self.atoms is None else self.atoms.reshape(-1)


@dataclass(frozen=True)
class Plan:
    """A batch by engine and shape.

    Attributes:
        parts: its crystals, and slabs in their boxes.
        inverse: (G, 3, 3), 1/A, inverse cells.
    """

    parts: list[Part]
    inverse: Tensor

    @property
    def nbytes(self) -> int:
        return sum(part.weights.nbytes + part.engine.nbytes for part in self.parts)


def make_plan(
    engine: str,
    system: System,
    phi: Phi,
    k_cutoff: float,
    tolerance: float,
    mesh: Callable[[float], Mesh | None],
) -> Plan:
    """
    Args:
        engine: "separable", "nufft" or "auto".
        system: the batch; weights are differentiable in its cells.
        phi: (K,) or (K, C) kernel with envelope, eV A^3/e^2, from (K,) wave numbers.
        k_cutoff: 1/A.
        tolerance: relative error of the forces that engine nufft may make.
        mesh: for upright cells from a tolerance, None where no mesh is that accurate; called only if it is needed.
    Raises:
        ConfigError: a tolerance that engine nufft cannot reach.
        StructureError: a cell without volume, with no wave vector below the cutoff, or with too many.
    """
    cells, dtype = system.cells, system.charges.dtype
    first_atom = [0]
    for count in system.counts:
        first_atom.append(first_atom[-1] + count)
    parts: list[Part] = []
    groups: dict[tuple[int, int, int], list[tuple[int, KLattice]]] = {}
    for g, count in enumerate(system.counts):
        if count == 0 or g in system.molecules:
            continue
        volume = volume_of(cells[g].detach(), g)
        chosen = None
        if engine == "nufft" or (engine == "auto" and count >= FEW_ATOMS):
            chosen = mesh(tolerance / skew_of(cells[g]))
        if chosen is None and engine == "nufft":
            raise ConfigError(
                f"tolerance = {tolerance:g} is out of reach of engine nufft with this kernel; raise it, or use "
                "separable"
            )
        if chosen is not None and (engine == "nufft" or _is_faster(count, cells[g], volume, k_cutoff, chosen)):
            parts.append(_nufft_part(g, first_atom, cells[g], volume, phi, k_cutoff, chosen, dtype))
        else:
            lattice = k_lattice(cells[g], k_cutoff)
            shape = (count, len(lattice.rows), len(lattice.columns))
            groups.setdefault(shape, []).append((g, lattice))
    if groups:
        fitting = []
        for (count, _, _), group in groups.items():
            size = most_structures(count, group[0][1])
            fitting += [group[n : n + size] for n in range(0, len(group), size)]
        parts += _separable_parts(fitting, first_atom, cells, phi, dtype)
    return Plan(parts, system.inverse())


def _is_faster(n_atoms: int, cell: Tensor, volume: float, k_cutoff: float, mesh: Mesh) -> bool:
    """Whether nufft is faster than separable."""
    lengths = torch.linalg.vector_norm(cell.detach(), dim=1).tolist()
    # an ellipse of columns, and half of the rows; see `KLattice`
    rows = 1 + k_cutoff * lengths[0] / (2.0 * math.pi)
    columns = 0.125 * k_cutoff**2 * volume / lengths[0] / math.pi
    phases = 4.0 * n_atoms * (rows + columns)
    products = 12.0 * n_atoms * rows * columns
    taps = n_atoms * mesh.width**3
    points = math.prod(lengths) / mesh.spacing**3
    return (
        SECONDS_TO_START + SECONDS_PER_TAP * taps + SECONDS_PER_POINT * points
        < SECONDS_PER_PHASE * phases + SECONDS_PER_PRODUCT * products
    )


def _separable_parts(
    groups: list[list[tuple[int, KLattice]]], first_atom: list[int], cells: Tensor, phi: Phi, dtype: torch.dtype
) -> list[Part]:
    """One part for each group of structures of one shape; the kernel is evaluated once for all."""
    device = cells.device
    members = [member for group in groups for member in group]
    reciprocal = reciprocal_cell(cells)
    kvectors = [lattice.indices.to(cells.dtype) @ reciprocal[g] for g, lattice in members]
    values = phi(torch.linalg.vector_norm(torch.cat(kvectors), dim=1))
    values = values.reshape(len(values), -1)
    volumes = torch.linalg.det(cells).abs()
    split = values.split([len(k) for k in kvectors])
    # each wave vector stands for its opposite too
    pieces = [2.0 / volumes[g] * piece for (g, _), piece in zip(members, split, strict=True)]
    parts = []
    for group in groups:
        mine, pieces = pieces[: len(group)], pieces[len(group) :]
        lattices = [lattice for _, lattice in group]
        engine = Separable(lattices, device, dtype)
        weights = engine.weights(torch.cat(mine), lattices)
        parts.append(Part(engine, weights.to(dtype), *_members([g for g, _ in group], first_atom, device)))
    return parts


def _nufft_part(
    g: int,
    first_atom: list[int],
    cell: Tensor,
    volume: float,
    phi: Phi,
    k_cutoff: float,
    mesh: Mesh,
    dtype: torch.dtype,
) -> Part:
    lengths = torch.linalg.vector_norm(cell.detach(), dim=1).tolist()
    check_number(volume, k_cutoff, MAX_MODES, lengths)
    engine = Nufft(lengths, mesh, cell.device, dtype)
    indices, factor = engine.modes(cell.device)
    # only modes inside the sphere are evaluated
    with torch.no_grad():
        k = torch.linalg.vector_norm(indices @ reciprocal_cell(cell), dim=-1)
        inside = ((k > 0.0) & (k < k_cutoff) & (factor > 0.0)).nonzero().unbind(dim=1)
    if len(inside[0]) == 0:
        raise no_wave_vector(volume, k_cutoff)
    k = torch.linalg.vector_norm(indices[inside] @ reciprocal_cell(cell), dim=-1)
    values = phi(k)
    values = values.reshape(len(values), -1) * (factor[inside] / torch.linalg.det(cell).abs())[:, None]
    weights = values.to(dtype).new_zeros(*factor.shape, values.shape[1]).index_put(inside, values.to(dtype))
    weights = weights.movedim(-1, 0)[None, ..., None].repeat(1, 1, 1, 1, 1, 2)
    return Part(engine, weights, *_members([g], first_atom, cell.device))


def skew_of(cell: Tensor) -> float:
    """How many times larger errors of forces are on the mesh of a skewed cell: 1, 2, 4 ...

    The wave vectors that a mesh takes for each other are the further apart the more a lattice vector leans against the
    plane of the other two. Up to 37 degrees, which holds cubic and hexagonal cells and the primitive ones of fcc and
    bcc, count as upright.
    """
    cell = cell.detach()
    cosines = 1.0 / (torch.linalg.vector_norm(cell, dim=1) * torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0))
    return 2.0 ** max(0, math.ceil(math.log2(0.8 / float(cosines.min()))))


def _members(structures: list[int], first_atom: list[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(b,) the structures and (b, n) their atoms; None if these are all, in order."""
    index = torch.tensor(structures, device=device)
    if len(structures) == len(first_atom) - 1:
        return index, None
    starts = torch.tensor([first_atom[g] for g in structures], device=device)
    count = first_atom[structures[0] + 1] - first_atom[structures[0]]
    return index, starts[:, None] + torch.arange(count, device=device)


def volume_of(cell: Tensor, g: int) -> float:
    """A^3.

    Raises:
        StructureError: the lattice vectors of structure g are not finite or enclose no volume.
    """
    if not bool(torch.isfinite(cell).all()):
        raise StructureError(f"structure {g}: the cell {cell.tolist()} holds a number that is not finite (nan or inf)")
    volume = float(torch.linalg.det(cell).abs())
    if not volume > 1e-6 * float(torch.linalg.vector_norm(cell, dim=1).prod()):
        raise StructureError(
            f"structure {g}: the lattice vectors {cell.tolist()} lie in a plane and enclose no volume; mend the cell, "
            "or say with pbc that it does not repeat in all directions"
        )
    return volume
