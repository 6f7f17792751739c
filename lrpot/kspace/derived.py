"""What follows from a kernel and is kept from call to call: its table, the mesh, weights of cells that come again."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from lrpot.kspace.boundary import (
    RadialForm,
    extent_of,
    isolated_energy,
    isolated_matrix,
    radial_form,
    slab_energy,
    tabulated,
)
from lrpot.kspace.kernel import Kernel
from lrpot.kspace.nufft import Mesh, choose_mesh
from lrpot.kspace.plan import Plan, make_plan
from lrpot.kspace.system import System

# Bytes of plans that are kept from call to call, and their number: cells of MD at constant pressure never come again.
KEPT = 1 << 28
KEPT_PLANS = 64

T = TypeVar("T")


class Owner(Protocol):
    """The settings of `lrpot.kspace.ReciprocalSum`."""

    kernel: Kernel
    k_cutoff: float
    engine: str
    tolerance: float
    envelope: float

    def phi(self, k: Tensor) -> Tensor:
        """(K,) or (K, C) from (K,) wave numbers."""

    def with_envelope(self, kernel: nn.Module, k: Tensor) -> Tensor:
        """`phi` with the kernel in another form."""


class Derived:
    """Made anew when the weights of the kernel change; see `ReciprocalSum`."""

    def __init__(self, owner: Owner, *, trained: bool) -> None:
        self.owner = weakref.proxy(owner)
        self.trained = trained
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
        self._meshes: dict[float, Mesh | None] = {}
        self._pairs: dict[float, RadialForm] = {}

    @cached_property
    def kernel(self) -> nn.Module:
        """The kernel, from a table if that is quicker."""
        return self._to_keep(self.owner.kernel.tabulated)

    def mesh(self, tolerance: float) -> Mesh | None:
        """For upright cells; None where none is that accurate."""
        if tolerance not in self._meshes:
            self._meshes[tolerance] = choose_mesh(self.owner.phi, self.owner.k_cutoff, tolerance)
        return self._meshes[tolerance]

    def phi(self, k: Tensor) -> Tensor:
        return self.owner.with_envelope(self.kernel, k)

    def plan(self, system: System, tolerance: float | None = None) -> Plan:
        """The batch by engine and shape, with the weights of the sums; another tolerance than the owner's if given."""
        tolerance = self.owner.tolerance if tolerance is None else tolerance
        if self.trained or system.cells.requires_grad:
            return self._make_plan(system, tolerance)
        cells = system.cells.cpu().numpy().tobytes()
        key = (tolerance, cells, str(system.cells.device), system.charges.dtype, *system.counts, -1, *system.molecules)
        if key not in self._plans:
            self._plans[key] = self._to_keep(
                lambda: self._make_plan(system.with_cells(system.cells.clone()), tolerance)
            )
            while len(self._plans) > 1 and (
                len(self._plans) > KEPT_PLANS or sum(plan.nbytes for plan in self._plans.values()) > KEPT
            ):
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def own_field(self) -> Tensor:
        """(1,) or (C,), eV/e^2: the energy of a unit charge in its own field."""
        zero = torch.zeros(1, dtype=torch.float64)
        return 0.5 * self._radial_form(0.0)(zero).reshape(-1)

    def molecule(self, positions: Tensor, charges: Tensor) -> Tensor:
        """(), float64, eV: the energy of a structure that does not repeat."""
        return isolated_energy(positions, charges, self._pair(positions))

    def interactions(self, positions: Tensor) -> Tensor:
        """(n, n) or (n, n, C), float64, eV/e^2: those of which `molecule` is the energy."""
        return isolated_matrix(positions, self._pair(positions))

    def slab(self, positions: Tensor, charges: Tensor, box: Tensor, axis: int) -> Tensor:
        """(), float64, eV: what the sum over the wave vectors of a slab's box lacks."""
        owner = self.owner
        return slab_energy(
            positions,
            charges,
            box,
            axis,
            owner.kernel.coulomb,
            self.phi,
            owner.k_cutoff,
            owner.envelope,
            owner.kernel.reach,
        )

    def _radial_form(self, reach: float) -> RadialForm:
        owner = self.owner
        return radial_form(self.phi, owner.k_cutoff, owner.envelope, reach, owner.kernel.reach)

    def _pair(self, positions: Tensor) -> RadialForm:
        # in steps, so that a table serves many
        reach = 8.0 * math.ceil(extent_of(positions) / 8.0 + 1e-6)
        if reach not in self._pairs:
            exact = self._to_keep(lambda: self._radial_form(reach))
            # a kernel that is being trained is differentiated in its weights
            self._pairs[reach] = (
                exact if self.trained else self._to_keep(lambda: tabulated(exact, self.owner.k_cutoff, reach))
            )
        return self._pairs[reach]

    def _to_keep(self, make: Callable[[], T]) -> T:
        """What serves later calls too, unless weights are trained; tensors made in inference mode could not be
        differentiated there."""
        if self.trained:
            return make()
        with torch.inference_mode(False), torch.no_grad():
            return make()

    def _make_plan(self, system: System, tolerance: float) -> Plan:
        # training on forces needs second derivatives
        engine = "separable" if self.trained and self.owner.engine == "auto" else self.owner.engine
        return make_plan(engine, system, self.phi, self.owner.k_cutoff, tolerance, self.mesh)
