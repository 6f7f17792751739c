"""The reciprocal sum 1/V sum_k Phi(|k|) |S(k)|^2: which engine computes what, under which boundary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.kspace.boundary import Boundary, boundary_of, radial_form, slab_box
from lrpot.kspace.dense import dense_energy
from lrpot.kspace.derivatives import Derivatives, by_autograd, by_engines
from lrpot.kspace.derived import Derived
from lrpot.kspace.fixed import potential_of
from lrpot.kspace.kernel import Kernel
from lrpot.kspace.lattice import MAX_KVECTORS, MAX_MODES, check_number, k_lattice
from lrpot.kspace.neutrality import NEUTRALITY, check_neutral, shift
from lrpot.kspace.plan import FEW_ATOMS, volume_of
from lrpot.kspace.quadratic import OverProcesses, Total, quadratic_form
from lrpot.kspace.system import System, check_finite, make_system
from lrpot.smooth import taper

ENGINES = ("auto", "dense", "separable", "nufft")


class ReciprocalSum(nn.Module):
    """E = 1/V sum_{0<|k|<k_cutoff} Phi(|k|) |S(k)|^2 of every structure in a batch, summed over charge channels.

    Phi is multiplied by an envelope that goes to zero with two continuous derivatives at the cutoff; without it the
    energy would jump whenever strain carries a wave vector across. `envelope=1.0` leaves it out (as published).

    Structures that do not repeat in all directions get what the sum becomes there: of a slab that of a box with a gap
    and the energy of its dipole, of a molecule an integral over k (see `lrpot.kspace.boundary`).

    Source: Yu et al. 2022, E_long.
    """

    def __init__(
        self,
        kernel: Kernel,
        k_cutoff: float,
        *,
        engine: str = "auto",
        tolerance: float = 1e-3,
        envelope: float = 0.9,
        neutrality: str = "background",
        subtract_self: bool = False,
    ) -> None:
        """
        Args:
            kernel: see `lrpot.kspace.kernel`; with a column for each channel of the charges, or one for all.
            k_cutoff: 1/A.
            engine: "separable" (exact; first and second derivatives), "nufft" (to the tolerance, O(N log N); first
                derivatives), "auto" (the faster of both at inference, separable for a kernel that is being trained),
                "dense" (the plain sum, to compare with).
            tolerance: largest relative error of the forces that engine nufft may make (see `choose_mesh`).
            envelope: the fraction of k_cutoff at which the envelope leaves one.
            neutrality: what is done about charges that do not add up to zero: "background" (kept; k = 0 is left out,
                as if a uniform charge neutralised them), "shift" (their mean is taken off), "error".
            subtract_self: take off the energy of each charge in its own field, so that an atom alone in its cell has
                only the interaction with its images.
        Raises:
            ConfigError: an unknown engine or neutrality, or a number out of range.
        """
        super().__init__()
        if engine not in ENGINES:
            raise ConfigError(f"engine = {engine!r} is not known; choose one of {', '.join(ENGINES)}")
        if neutrality not in (*NEUTRALITY, "error"):
            raise ConfigError(f"neutrality = {neutrality!r}; choose one of {', '.join(NEUTRALITY)}, error")
        if not k_cutoff > 0.0:
            raise ConfigError(f"k_cutoff = {k_cutoff:g} 1/A: must be positive")
        if not 0.0 < tolerance < 1.0:
            raise ConfigError(f"tolerance = {tolerance:g}: must lie between 0 and 1 (relative error of forces)")
        if not 0.0 <= envelope <= 1.0:
            raise ConfigError(f"envelope = {envelope:g}: must lie between 0 and 1 (a fraction of k_cutoff)")
        self.kernel = kernel
        self.k_cutoff = float(k_cutoff)
        self.engine = engine
        self.tolerance = float(tolerance)
        self.envelope = float(envelope)
        self.neutrality = neutrality
        self.subtract_self = subtract_self
        self._kept: Derived | None = None
        self._kept_state: tuple[object, ...] = ()

    def forward(
        self,
        positions: Tensor,
        charges: Tensor,
        cell: Tensor,
        batch: Tensor | None = None,
        pbc: Tensor | None = None,
    ) -> Tensor:
        """Energies; differentiable in positions, charges, cell and the weights of the kernel (see `engine`).

        Args:
            positions: (N, 3), A; need not be wrapped.
            charges: (N, C), e. Their precision is that of the computation; energies are summed in float64.
            cell: (3, 3) or (G, 3, 3), rows are lattice vectors, A.
            batch: (N,) index of the structure of each atom, ascending; all belong to one if left out.
            pbc: (3,) or (G, 3) bool, periodic along which vectors; along all if left out.
        Returns:
            (G,) float64, eV.
        Raises:
            ShapeError: the shapes disagree; both are printed.
            StructureError: a number that is not finite, a cell without volume, no wave vector below the cutoff or too
                many, periodicity along one vector only, or charges that neutrality "error" refuses.
        """
        system = self._system(positions, charges, cell, batch, pbc)
        derived = self._derived()
        energy = positions.new_zeros(len(system), dtype=torch.float64)
        for g in system.molecules:
            energy = energy.index_add(0, system.index.new_tensor([g]), derived.molecule(*system.of_structure(g))[None])
        for g, axis in system.slabs.items():
            lacking = derived.slab(*system.of_structure(g), system.cells[g], axis)
            energy = energy.index_add(0, system.index.new_tensor([g]), lacking[None])
        if self.engine == "dense":
            energy = energy + dense_energy(system, self.phi, self.k_cutoff)
        else:
            plan = derived.plan(system)
            fractional = system.fractional(plan.inverse)
            for part in plan.parts:
                inputs = part.of_atoms(fractional), part.of_atoms(system.charges)
                energy = energy.index_add(0, part.structures, quadratic_form(*inputs, part.weights, part.engine))
        if self.subtract_self:
            own = system.charges**2 * derived.own_field().to(charges.device)
            energy = energy - system.per_structure(own.sum(dim=1))
        check_finite(energy.detach(), positions.detach(), charges.detach(), cell.detach())
        return energy

    def energy_forces(
        self,
        positions: Tensor,
        charges: Tensor,
        cell: Tensor,
        batch: Tensor | None = None,
        pbc: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Energies and forces without autograd, for fixed charges: the fast road at inference.

        Arguments and errors are as of `forward`.

        Returns:
            (G,) float64, eV; (N, 3) in the precision of the positions, eV/A.
        """
        found = self._inference(positions, charges, cell, batch, pbc, stress=False)
        return found.energy, found.forces

    def energy_forces_stress(
        self, positions: Tensor, charges: Tensor, cell: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `energy_forces`, with the stress, (G, 3, 3), float64, eV/A^3, positive under tension; crystals only.

        Arguments are as of `forward`.
        """
        found = self._inference(positions, charges, cell, batch, None, stress=True)
        assert found.stress is not None
        return found.energy, found.forces, found.stress

    def potential(
        self,
        positions: Tensor,
        charges: Tensor,
        cell: Tensor,
        batch: Tensor | None = None,
        pbc: Tensor | None = None,
    ) -> Tensor:
        """(N, C), eV/e: dE/dq, the potential at each atom (its own field included unless subtracted).

        Arguments are as of `forward`.
        """
        return self._inference(positions, charges, cell, batch, pbc, stress=False).potential

    def potential_of(
        self,
        positions: Tensor,
        cell: Tensor,
        batch: Tensor | None,
        pbc: Tensor | None,
        dtype: torch.dtype,
        *,
        tolerance: float | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """`potential` as a function of the charges alone, for many charges at the same places.

        It is the derivative of what `forward` gives, by the same engine, also while the kernel is being trained.

        Args:
            positions: (N, 3), A.
            cell: (3, 3) or (G, 3, 3), A.
            batch: (N,) index of the structure of each atom, as of `forward`.
            pbc: (3,) or (G, 3) bool, as of `forward`.
            dtype: of the charges that will be given.
            tolerance: of engine nufft, in place of its own.
        Returns:
            (N, C), eV/e, from (N, C), e; not differentiable.
        """
        positions, cell = positions.detach(), cell.detach()
        if self.engine == "dense":
            return lambda charges: self.potential(positions, charges, cell, batch, pbc)
        with torch.no_grad():
            system = self._system(positions, positions.new_zeros(len(positions), 1, dtype=dtype), cell, batch, pbc)
            derived = self._derived()

            def lacking(g: int, charges: Tensor) -> Tensor:
                return derived.slab(system.of_structure(g)[0], charges, system.cells[g], system.slabs[g])

            whole = potential_of(system, derived.plan(system, tolerance), derived.interactions, lacking)
            own = 2.0 * derived.own_field().to(positions.device, dtype) if self.subtract_self else None
        if own is None and self.neutrality != "shift":
            return whole

        @torch.no_grad()
        def potential(charges: Tensor) -> Tensor:
            if self.neutrality == "shift":
                charges = shift(charges, system.index, len(system))
            found = whole(charges) if own is None else whole(charges) - own * charges
            # what takes off the mean is its own transpose
            return shift(found, system.index, len(system)) if self.neutrality == "shift" else found

        return potential

    def shared(
        self, positions: Tensor, charges: Tensor, cell: Tensor, n_atoms: int, total: Total, *, first: bool
    ) -> Tensor:
        """(), float64, eV: what `forward` gives for a crystal whose atoms are divided among processes, in each of them.

        Every process calls it with its own atoms, and gets the derivatives by these, which are whole: not to be summed.
        That by the cell, with positions that follow it, comes in the first process only, so that it may be summed.

        Args:
            positions: (n, 3), A, of the atoms of this process; n may be zero.
            charges: (n, C), e, of the same atoms.
            cell: (3, 3) or (1, 3, 3), A; periodic in all directions.
            n_atoms: that a process has on average; decides on the engine, so it must be the same in all.
            total: sums over the processes.
            first: whether this process is the first one.
        Raises:
            ConfigError: engine dense, or a neutrality that needs a sum over all charges beforehand.
            ShapeError, StructureError: see `forward`.
        """
        if self.engine == "dense" or self.neutrality != "background":
            raise ConfigError(
                f"engine {self.engine} with neutrality {self.neutrality} cannot be divided among processes; use one "
                "process, or engine auto with neutrality background"
            )
        system = self._system(positions, charges, cell, None, None)
        system.counts = [n_atoms]  # from which the plan chooses the engine
        derived = self._derived()
        plan = derived.plan(system)
        (part,) = plan.parts
        engine = copy.copy(part.engine)
        engine.total = total
        weights = part.weights if first else part.weights.detach()
        fractional = system.fractional(plan.inverse)
        energy = quadratic_form(fractional[None], system.charges[None], weights, engine).sum()
        if self.subtract_self:
            own = (system.charges.double() ** 2 * derived.own_field().to(charges.device)).sum()
            energy = energy - OverProcesses.apply(own, total)
        return energy

    def check(self, cell: Tensor, pbc: Tensor) -> None:
        """Find out, before anything is computed, whether a structure can be treated.

        Args:
            cell: (3, 3), A.
            pbc: (3,) bool.
        Raises:
            StructureError: periodic along one vector only, a cell without volume, no wave vector or too many.
        """
        boundary = boundary_of(pbc)
        if boundary is Boundary.ISOLATED:
            return
        limit = MAX_MODES if self.engine in ("auto", "nufft") else MAX_KVECTORS
        if boundary is Boundary.SLAB:
            axis = int((~pbc).nonzero()[0])
            flat = cell.new_zeros(1, 3)  # a slab of some thickness needs a larger box yet
            self._check_slab(slab_box(flat, cell, axis, self.kernel.reach), axis, limit)
            return
        volume = volume_of(cell, 0)
        check_number(volume, self.k_cutoff, limit, torch.linalg.vector_norm(cell, dim=1).tolist())
        if volume * self.k_cutoff**3 < 1e4:
            k_lattice(cell, self.k_cutoff)

    def _check_slab(self, box: Tensor, axis: int, limit: int) -> None:
        """Refuse a slab in whose box there are more wave vectors than the limit."""
        lengths = torch.linalg.vector_norm(box.detach(), dim=1).tolist()
        one, other = lengths[:axis] + lengths[axis + 1 :]
        check_number(
            volume_of(box.detach(), 0),
            self.k_cutoff,
            limit,
            lengths,
            what=f"a slab of {one:.4g} x {other:.4g} A needs a box that is as high as fields reach across vacuum; one",
            cure="repeat the slab less often in its plane",
        )

    def phi(self, k: Tensor) -> Tensor:
        """(K,) or (K, C) kernel with envelope, eV A^3 / e^2, at (K,) wave numbers in 1/A."""
        return self.with_envelope(self.kernel, k)

    def real_space(self, distances: Tensor) -> Tensor:
        """(P,) or (P, C), eV/e^2: energy of two unit charges at (P,) distances in A, alone in space."""
        reach = float(distances.max())
        return radial_form(self.phi, self.k_cutoff, self.envelope, reach, self.kernel.reach)(distances)

    def with_envelope(self, kernel: nn.Module, k: Tensor) -> Tensor:
        """`phi`, (K,) or (K, C), at (K,) wave numbers in 1/A, with the kernel in another form."""
        phi = kernel(k)
        if self.envelope == 1.0:
            return phi
        envelope = taper(k, self.k_cutoff, self.envelope)
        return phi * (envelope if phi.ndim == 1 else envelope[:, None])

    def _system(
        self, positions: Tensor, charges: Tensor, cell: Tensor, batch: Tensor | None, pbc: Tensor | None
    ) -> System:
        system = make_system(positions, charges, cell, batch, pbc, self.kernel)
        for g, axis in system.slabs.items():
            trained = any(p.requires_grad for p in self.kernel.parameters())
            meshed = self.engine == "auto" and not trained and system.counts[g] >= FEW_ATOMS
            meshed = meshed or self.engine == "nufft"
            self._check_slab(system.cells[g], axis, MAX_MODES if meshed else MAX_KVECTORS)
        if self.neutrality == "error":
            check_neutral(charges, system.index, len(system))
        elif self.neutrality == "shift":
            system.charges = shift(charges, system.index, len(system))
        return system

    def _inference(
        self,
        positions: Tensor,
        charges: Tensor,
        cell: Tensor,
        batch: Tensor | None,
        pbc: Tensor | None,
        *,
        stress: bool,
    ) -> Derivatives:
        inputs = positions.detach(), charges.detach(), cell.detach(), batch, pbc
        with torch.no_grad():
            system = self._system(*inputs)
            derived = self._derived()
        if not system.crystals_only or self.engine == "dense" or self.neutrality == "shift" or self.subtract_self:
            return by_autograd(self, *inputs, stress=stress)
        found = by_engines(system, derived, stress=stress)
        check_finite(found.energy, positions, charges, cell)
        return found._replace(forces=found.forces.to(positions.dtype))

    def _derived(self) -> Derived:
        """What follows from the kernel: kept as long as its weights stay what they are, made anew while they are
        being trained."""
        weights = list(self.kernel.parameters())
        if any(p.requires_grad or p.is_inference() for p in weights):
            return Derived(self, trained=any(p.requires_grad for p in weights))
        # an optimiser changes weights in place, which their version tells
        settings = (self.engine, self.tolerance, self.k_cutoff, self.envelope)
        state = (*settings, *self.kernel.modules(), *((p.data_ptr(), p._version) for p in weights))
        if self._kept is None or state != self._kept_state:
            self._kept, self._kept_state = Derived(self, trained=False), state
        return self._kept

    def train(self, mode: bool = True) -> ReciprocalSum:
        """As of any module; tables of the kernel are made anew."""
        self._kept = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # copies and pickles make their own
        return {**self.__dict__, "_kept": None}
