"""All checks with their limits and cures, and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from lrpot.errors import ContractError
from lrpot.testing import derivatives, invariance, modules
from lrpot.testing.bench import SAME, Bench

# Orders of decay: between a power of the distance from the cutoff and the one below it.
VALUE_ORDER, FORCE_ORDER, CURVATURE_ORDER = 1.5, 0.5, 2.5

Figure = TypeVar("Figure")
Check = tuple[str, Callable[[Bench], float], float, str]

_SORT = "sum messages with index_add by centre, and let nothing depend on places in the list"
_COPY = "keep weights in nn.Parameter, buffers and submodules of classes that can be imported (no lambda, no closure)"
_CUTOFF = "decay at the cutoff"
_CUTOFF_CURE = "multiply every message by a function such as lrpot.smooth.taper(distance, cutoff)"

CHECKS: tuple[Check, ...] = (
    ("deepcopy", modules.deep_copy, 0.0, _COPY),
    (
        "shapes and dtypes",
        modules.shapes,
        0.0,
        "return AtomFeatures(scalar (N, features), vector (N, 3, features) or None, irreps (N, dim) as irreps_out "
        "names them, or None) in the type of the vectors; make constants with .to(vectors) or register_buffer",
    ),
    (
        "input is not changed",
        modules.input_is_kept,
        0.0,
        "copy before writing; in-place operations on the batch are not allowed",
    ),
    (
        "atom without neighbours",
        invariance.lonely_atom,
        0.0,
        "divide by no count of neighbours and no norm that may be zero",
    ),
    (
        "no edges at all",
        invariance.no_edges,
        0.0,
        "take the number of atoms from batch.numbers, never from edge_index.max()",
    ),
    ("deterministic", modules.determinism, 0.0, "draw no random numbers in forward"),
    ("sees its neighbours", invariance.sees_neighbours, 1.0, "compute features from the edge vectors"),
    ("order of edges", invariance.order_of_edges, SAME, _SORT),
    (
        "batch = single",
        invariance.batch_is_single,
        SAME,
        "let no atom depend on another structure of the batch: no norm over the batch, no mean over all atoms",
    ),
    (
        "permutation of atoms",
        invariance.permutation,
        SAME,
        "let nothing depend on the index of an atom, only on its number",
    ),
    (
        "rotation",
        invariance.rotation,
        SAME,
        "make scalars of distances, angles and norms, and vectors of sums along edges",
    ),
    (
        "reflection",
        invariance.reflection,
        SAME,
        "a vector feature must change its sign under inversion; leave out cross products",
    ),
    (
        "translation and wrapping",
        invariance.wrapping,
        SAME,
        "read geometry from the vectors alone, never from positions or shifts",
    ),
    (
        "2 x 1 x 1 supercell",
        invariance.supercell,
        SAME,
        "let features depend on the surroundings alone, not on the cell",
    ),
    (
        "one-atom cell",
        invariance.one_atom_cell,
        SAME,
        "keep edges from an atom to its own images; tell edges apart, not pairs",
    ),
    (
        "gradient against finite differences",
        derivatives.gradients,
        derivatives.GRADIENT,
        "keep autograd whole: no detach, no numpy, no rounding",
    ),
    (
        "second derivatives against finite differences",
        derivatives.second_gradients,
        derivatives.SECOND_GRADIENT,
        "use twice differentiable operations (silu, not relu), and no autograd.Function with once_differentiable",
    ),
    (
        "float32 against float64",
        modules.single_precision,
        modules.SINGLE_PRECISION,
        "avoid differences of large numbers in forward",
    ),
    ("state_dict", modules.state_dict, 0.0, _COPY),
    ("pickle", modules.pickling, 0.0, _COPY),
)
"""Name, check, limit and cure of what is checked everywhere."""

GPU_CHECKS: tuple[Check, ...] = (
    (
        "GPU = CPU",
        modules.gpu_is_cpu,
        SAME,
        "make new tensors on the device of the vectors, and constants with register_buffer",
    ),
)
"""The same, of what needs a GPU."""


@dataclass(frozen=True)
class CheckResult:
    """One check that a backbone passed.

    Attributes:
        name: what was checked.
        figure: what was found, relative unless the name says otherwise.
        limit: what is allowed: at most; for the orders of decay at the cutoff, more than.
    """

    name: str
    figure: float
    limit: float


@dataclass(frozen=True)
class ContractReport:
    """What `check_backbone` found out.

    Attributes:
        checks: those that were made, in order.
        curvature_continuous: whether the second derivative of the features, too, is continuous at the cutoff.
        on_gpu: whether CPU and GPU could be compared.
    """

    checks: list[CheckResult]
    curvature_continuous: bool
    on_gpu: bool

    def __str__(self) -> str:
        lines = [f"{check.name:52s} {check.figure:8.1e}  (limit {check.limit:.1e})" for check in self.checks]
        lines.append(f"second derivative continuous at the cutoff: {'yes' if self.curvature_continuous else 'no'}")
        if not self.on_gpu:
            lines.append("CPU and GPU not compared: this machine has no CUDA device")
        return "\n".join(lines)


def check_backbone(
    make: Callable[[], nn.Module], *, elements: Sequence[int] = (11, 17, 8), seed: int = 0
) -> ContractReport:
    """Check everything that lrpot asks of a backbone (see `lrpot.backbones`).

    Args:
        make: makes a backbone with fresh weights; small ones are checked in a second.
        elements: atomic numbers that it knows.
        seed: of weights, crystals and directions.
    Raises:
        ContractError: the first check that fails: its name, the figure and the cure.
    """
    bench = Bench(make, tuple(elements), seed)
    on_gpu = torch.cuda.is_available()
    results = []
    for name, check, limit, cure in CHECKS + (GPU_CHECKS if on_gpu else ()):
        found = _guarded(name, check, bench, cure)
        if not found <= limit:
            raise ContractError(f"{name}: {found:.1e} is more than {limit:.1e}; {cure}")
        results.append(CheckResult(name, found, limit))
    value, force = _guarded(_CUTOFF, derivatives.decay_at_cutoff, bench, _CUTOFF_CURE)
    for name, order, limit, meaning in (
        ("order of decay at the cutoff: value", value, VALUE_ORDER, "energies"),
        ("order of decay at the cutoff: first derivative", force, FORCE_ORDER, "forces"),
    ):
        if not order > limit:
            raise ContractError(
                f"{name} is {order:.2f}, must be more than {limit:g}: {meaning} jump where an edge comes or goes; "
                f"{_CUTOFF_CURE}"
            )
        results.append(CheckResult(name, order, limit))
    return ContractReport(results, min(value, force + 1.0) > CURVATURE_ORDER, on_gpu)


def _guarded(name: str, check: Callable[[Bench], Figure], bench: Bench, cure: str) -> Figure:
    """Run a check; whatever it raises becomes one line."""
    try:
        return check(bench)
    except ContractError as error:
        raise ContractError(f"{name}: {error}; {cure}") from error
    except Exception as error:  # whatever a foreign module may raise
        reason = " ".join(str(error).split())[:160]
        raise ContractError(f"{name}: the backbone raised {type(error).__name__}: {reason}; {cure}") from error
