"""The contract of a backbone as a check that anybody can run on their own.

    from lrpot.testing import check_backbone
    print(check_backbone(lambda: MyNet(features=16, cutoff=4.0)))

All checks are in float64 unless their name says otherwise, with noise on the weights, since layers that start at zero
would hide what lies before them. The crystals are triclinic and scale with the cutoff.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones import AtomFeatures
from lrpot.data.neighbours import add_edges
from lrpot.errors import ContractError
from lrpot.structure import Structure, collate, edge_vectors, make_structure

# Limits are relative to the largest feature or gradient of the check.
SAME = 1e-10  # the same sums in another order
SINGLE_PRECISION = 1e-5  # float32 beside float64
GRADIENT = 1e-6  # central differences of a step of STEP
SECOND_GRADIENT = 1e-5  # the same of a quadratic function of gradients
STEP = 1e-5  # of unit vectors of directions
BLIND = 1e-6  # a smaller answer to atoms that move by a tenth of the cutoff is none

NOISE = 0.1  # standard deviation of what is added to every weight
NEIGHBOURS = 14.0  # of an atom within the cutoff, on average
NEAREST = 0.4  # of the cutoff: no two atoms of a crystal are closer

# Distances of the edge that is about to cross the cutoff, from it, in cutoffs.
NEAR_CUTOFF = (2e-3, 1e-3)
PROJECTIONS = 8  # one alone may happen to be zero there
NOTHING = 1e-12  # relative: influence that is rounding
VALUE_ORDER, FORCE_ORDER, CURVATURE_ORDER = 1.5, 0.5, 2.5  # between a power of the distance and the one below it


_Figure = TypeVar("_Figure")


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
    bench = _Bench(make, tuple(elements), seed)
    on_gpu = torch.cuda.is_available()
    results = []
    for name, check, limit, cure in CHECKS + (GPU_CHECKS if on_gpu else ()):
        found = _guarded(name, check, bench, cure)
        if not found <= limit:
            raise ContractError(f"{name}: {found:.1e} is more than {limit:.1e}; {cure}")
        results.append(CheckResult(name, found, limit))
    value, force = _guarded(_CUTOFF, decay_at_cutoff, bench, _CUTOFF_CURE)
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


def _guarded(name: str, check: Callable[[_Bench], _Figure], bench: _Bench, cure: str) -> _Figure:
    """Run a check; whatever it raises becomes one line."""
    try:
        return check(bench)
    except ContractError as error:
        raise ContractError(f"{name}: {error}; {cure}") from error
    except Exception as error:  # whatever a foreign module may raise
        reason = " ".join(str(error).split())[:160]
        raise ContractError(f"{name}: the backbone raised {type(error).__name__}: {reason}; {cure}") from error


class _Bench:
    """The backbone under test with noise on its weights, and crystals of its size."""

    def __init__(self, make: Callable[[], nn.Module], elements: tuple[int, ...], seed: int) -> None:
        self.make = make
        self.elements = elements
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = make().double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(NOISE * self.random(parameter.shape))
        self.cutoff, self.features = _attributes(self.model)
        self.crystals = [self.crystal(n, seed + n) for n in (5, 3)]
        self.one_atom = self.crystal(1, seed)
        self.lonely = self.with_edges(elements[:1], np.zeros((1, 3)), np.zeros((3, 3)), periodic=False)

    def random(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def crystal(self, n: int, seed: int) -> Structure:
        """n atoms in a random triclinic cell, with edges."""
        rng = np.random.default_rng(seed)
        cell = np.diag(rng.uniform(0.9, 1.1, 3)) @ (np.eye(3) + np.tril(rng.uniform(-0.3, 0.3, (3, 3)), -1))
        volume = n * 4.0 / 3.0 * np.pi * self.cutoff**3 / NEIGHBOURS
        cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        cell *= (volume / abs(np.linalg.det(cell))) ** (1 / 3)
        images = np.array(list(product((-1, 0, 1), repeat=3))) @ cell
        positions = np.empty((0, 3))
        while len(positions) < n:
            new = rng.random(3) @ cell
            nearest = np.linalg.norm(new + images[:, None] - positions, axis=2).min(initial=np.inf)
            if nearest > NEAREST * self.cutoff:
                positions = np.vstack([positions, new])
        return self.with_edges([self.elements[i % len(self.elements)] for i in range(n)], positions, cell)

    def with_edges(
        self, numbers: Sequence[int] | Tensor, positions: object, cell: object, *, periodic: bool = True
    ) -> Structure:
        return add_edges(make_structure(numbers, positions, cell, [periodic] * 3), self.cutoff)

    def run(self, batch: Data, vectors: Tensor | None = None) -> AtomFeatures:
        with torch.no_grad():
            return self.model(batch, edge_vectors(batch) if vectors is None else vectors)

    def project(self, features: AtomFeatures, which: int = 0) -> Tensor:
        """(), a random function of all features; `which` of many."""
        generator = torch.Generator().manual_seed(self.seed + which)
        total = features.scalar.new_zeros(())
        for values in features:
            if values is not None:
                weights = torch.randn(values.shape[1:], generator=generator, dtype=torch.float64)
                total = total + (weights.to(values) * values).sum()
        return total


def _attributes(model: nn.Module) -> tuple[float, int]:
    cutoff, features = getattr(model, "cutoff", None), getattr(model, "features", None)
    if not isinstance(cutoff, float) or not cutoff > 0.0:
        raise ContractError(f"attribute cutoff is {cutoff!r}; set self.cutoff to a positive float, A")
    if not isinstance(features, int) or features < 1:
        raise ContractError(f"attribute features is {features!r}; set self.features to the width, a positive int")
    return cutoff, features


def _difference(one: AtomFeatures, other: AtomFeatures) -> float:
    """The largest difference of two sets of features, relative to the largest feature."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a is None or b is None:
            if a is not b:
                raise ContractError("it has vectors at one time and none at another")
            continue
        if a.shape != b.shape:
            raise ContractError("its features have another shape the second time")
        if a.numel():
            # crystals of high symmetry have vectors of zero, which are compared with the scalars' size
            scale = float(torch.maximum(a.abs().max(), one.scalar.abs().max()))
            worst = _larger(worst, float((a.double() - b.double()).abs().max()) / max(scale, 1e-300))
    return worst


def _larger(a: float, b: float) -> float:
    """The larger one; not a number if either is not."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _take(features: AtomFeatures, atoms: Tensor | slice) -> AtomFeatures:
    return AtomFeatures(features.scalar[atoms], None if features.vector is None else features.vector[atoms])


def _finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ContractError("features or gradients are not finite")


# --- the checks: each returns a figure that must not exceed its limit, or raises ContractError


def shapes(bench: _Bench) -> float:
    batch = collate(bench.crystals)
    for dtype in (torch.float64, torch.float32):
        output = copy.deepcopy(bench.model).to(dtype)(batch, edge_vectors(batch).to(dtype))
        if not isinstance(output, AtomFeatures):
            raise ContractError(f"forward returned {type(output).__name__}")
        n = batch.num_nodes
        expected = {"scalar": (n, bench.features), "vector": (n, 3, bench.features)}
        for name, values in output._asdict().items():
            if name == "vector" and values is None:
                continue
            if tuple(values.shape) != expected[name] or values.dtype != dtype:
                raise ContractError(
                    f"{name} features have shape {tuple(values.shape)} and type {values.dtype}, expected "
                    f"{expected[name]} and {dtype}"
                )
            _finite(values)
    return 0.0


def sees_neighbours(bench: _Bench) -> float:
    """The limit over the answer, so that a small figure is a good one."""
    s = bench.crystals[0]
    moved = edge_vectors(s) * (1.0 - 0.1 * torch.rand(s.edge_index.shape[1], 1, generator=bench.generator).double())
    return BLIND / max(_difference(bench.run(s), bench.run(s, moved)), 1e-300)


def batch_is_single(bench: _Bench) -> float:
    parts = [*bench.crystals, bench.lonely, bench.one_atom]
    together = bench.run(collate(parts))
    worst, first = 0.0, 0
    for part in parts:
        last = first + part.num_nodes
        worst = _larger(worst, _difference(bench.run(part), _take(together, slice(first, last))))
        first = last
    return worst


def _gradient(bench: _Bench, batch: Data) -> tuple[Tensor, Tensor]:
    """The projected features and their gradient by the edge vectors."""
    vectors = edge_vectors(batch).detach().requires_grad_()
    total = bench.project(bench.model(batch, vectors)) + 0.0 * vectors.sum()
    (gradient,) = torch.autograd.grad(total, vectors)
    return total.detach(), gradient


def one_atom_cell(bench: _Bench) -> float:
    """Only images of the atom itself are its neighbours; as two atoms in a doubled cell it is the same."""
    if bench.one_atom.edge_index.shape[1] == 0:
        raise AssertionError("the one-atom cell is too large")
    for values in _gradient(bench, bench.one_atom):
        _finite(values)
    return _doubled(bench, bench.one_atom)


def lonely_atom(bench: _Bench) -> float:
    for values in _gradient(bench, collate([bench.crystals[0], bench.lonely])):
        _finite(values)
    return 0.0


def no_edges(bench: _Bench) -> float:
    batch = collate([bench.lonely, bench.lonely])
    output = bench.run(batch)
    if tuple(output.scalar.shape) != (2, bench.features):
        raise ContractError(f"scalar features have shape {tuple(output.scalar.shape)}, expected (2, {bench.features})")
    for values in (output.scalar, *_gradient(bench, batch)):
        _finite(values)
    return 0.0


def input_is_kept(bench: _Bench) -> float:
    batch = collate(bench.crystals)
    vectors = edge_vectors(batch)
    before = {name: batch[name].clone() for name in batch.keys() if isinstance(batch[name], Tensor)}  # noqa: SIM118
    names, kept = set(batch.keys()), vectors.clone()
    bench.run(batch, vectors)
    if set(batch.keys()) != names:
        raise ContractError(f"the batch has other fields than before: {sorted(names ^ set(batch.keys()))}")
    changed = [name for name, values in before.items() if not torch.equal(batch[name], values)]
    changed += [] if torch.equal(vectors, kept) else ["vectors"]
    if changed:
        raise ContractError(f"{', '.join(changed)} changed")
    return 0.0


def permutation(bench: _Bench) -> float:
    s = bench.crystals[0]
    order = torch.randperm(s.num_nodes, generator=bench.generator)
    other = bench.with_edges(s.numbers[order], s.positions[order], s.cell[0])
    return _difference(_take(bench.run(s), order), bench.run(other))


def order_of_edges(bench: _Bench) -> float:
    s = bench.crystals[0]
    order = torch.randperm(s.edge_index.shape[1], generator=bench.generator)
    order = order[torch.argsort(s.edge_index[1, order], stable=True)]
    other = s.clone()
    other.edge_index, other.edge_shift = s.edge_index[:, order], s.edge_shift[order]
    return _difference(bench.run(s), bench.run(other))


def _turned(bench: _Bench, *, mirrored: bool) -> float:
    s = bench.crystals[0]
    turn = torch.linalg.qr(bench.random((3, 3)))[0]
    if (torch.linalg.det(turn) < 0) != mirrored:
        turn = -turn
    here = bench.run(s)
    there = bench.run(s, edge_vectors(s) @ turn)
    vector = None if here.vector is None else torch.einsum("naf,ab->nbf", here.vector, turn)
    return _difference(AtomFeatures(here.scalar, vector), there)


def rotation(bench: _Bench) -> float:
    return _turned(bench, mirrored=False)


def reflection(bench: _Bench) -> float:
    return _turned(bench, mirrored=True)


def wrapping(bench: _Bench) -> float:
    s = bench.crystals[0]
    whole = torch.randint(-3, 4, (s.num_nodes, 3), generator=bench.generator).double()
    moved = s.positions + whole @ s.cell[0] + bench.random((3,))
    return _difference(bench.run(s), bench.run(bench.with_edges(s.numbers, moved, s.cell[0])))


def _doubled(bench: _Bench, s: Structure) -> float:
    larger = bench.with_edges(
        s.numbers.repeat(2),
        torch.cat([s.positions, s.positions + s.cell[0, 0]]),
        s.cell[0] * torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64),
    )
    return _difference(_take(bench.run(s), torch.arange(s.num_nodes).repeat(2)), bench.run(larger))


def supercell(bench: _Bench) -> float:
    return _doubled(bench, bench.crystals[0])


def gradients(bench: _Bench) -> float:
    """By autograd and by central differences, along a random direction."""
    s = bench.crystals[0]
    vectors = edge_vectors(s)
    direction = bench.random(vectors.shape)
    direction = direction / torch.linalg.vector_norm(direction)
    exact = _gradient(bench, s)[1]
    ends = [bench.project(bench.run(s, vectors + sign * STEP * direction)) for sign in (1.0, -1.0)]
    numerical = (ends[0] - ends[1]) / (2.0 * STEP)
    scale = torch.linalg.vector_norm(exact).clamp_min(1e-300)
    return float((numerical - (exact * direction).sum()).abs() / scale)


def second_gradients(bench: _Bench) -> float:
    """A loss of forces by the weights: by autograd and by central differences, along a random direction."""
    s, model = bench.crystals[0], copy.deepcopy(bench.model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ContractError("it has no weights to train")

    def loss() -> Tensor:
        vectors = edge_vectors(s).requires_grad_()
        (gradient,) = torch.autograd.grad(bench.project(model(s, vectors)), vectors, create_graph=True)
        return (gradient**2).sum()

    exact = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
    norm = math.sqrt(sum(float((g**2).sum()) for g in exact))
    direction = [bench.random(weight.shape) for weight in weights]
    length = math.sqrt(sum(float((d**2).sum()) for d in direction))
    direction = [d / length for d in direction]
    ends = []
    for moves in (1.0, -2.0):  # from the start to one side, from there to the other
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(moves * STEP * d)
        ends.append(float(loss().detach()))
    numerical = (ends[0] - ends[1]) / (2.0 * STEP)
    analytic = sum(float((g * d).sum()) for g, d in zip(exact, direction, strict=True))
    return abs(numerical - analytic) / max(norm, 1e-300)


def single_precision(bench: _Bench) -> float:
    batch = collate(bench.crystals)
    with torch.no_grad():
        single = copy.deepcopy(bench.model).float()(batch, edge_vectors(batch).float())
    return _difference(bench.run(batch), single)


def determinism(bench: _Bench) -> float:
    batch = collate(bench.crystals)
    return _difference(bench.run(batch), bench.run(batch))


def state_dict(bench: _Bench) -> float:
    """Into a module with other weights, by way of what a model file holds."""
    state = {name: value.contiguous() for name, value in bench.model.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed + 1)
        fresh = bench.make().double().eval()
    fresh.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    return _same_as(bench, fresh)


def pickling(bench: _Bench) -> float:
    return _same_as(bench, pickle.loads(pickle.dumps(bench.model)))


def deep_copy(bench: _Bench) -> float:
    """Other checks compute with deep copies; here none may share a weight with what it was made from."""
    parameters = [list(model.parameters()) for model in (copy.deepcopy(bench.model), bench.model)]
    places = [{p.data_ptr() for p in part if p.numel()} for part in parameters]
    if places[0] & places[1]:
        raise ContractError("a deep copy shares weights with what it was made from")
    return 0.0


def _same_as(bench: _Bench, model: nn.Module) -> float:
    batch = collate(bench.crystals)
    with torch.no_grad():
        return _difference(bench.run(batch), model(batch, edge_vectors(batch)))


def gpu_is_cpu(bench: _Bench) -> float:
    batch = collate([*bench.crystals, bench.lonely])
    there = batch.clone().to("cuda")
    with torch.no_grad():
        output = copy.deepcopy(bench.model).to("cuda")(there, edge_vectors(there))
    vector = None if output.vector is None else output.vector.cpu()
    return _difference(bench.run(batch), AtomFeatures(output.scalar.cpu(), vector))


def decay_at_cutoff(bench: _Bench) -> tuple[float, float]:
    """With which power of its distance from the cutoff an edge loses its influence on features and gradients.

    Two clusters whose only link is one pair of atoms; once with that edge and once without it.
    """
    rng = np.random.default_rng(bench.seed)
    cluster = np.array([[0.0, 0.0, 0.0], [0.45, 0.1, 0.2], [0.3, -0.4, -0.1]]) + 0.05 * rng.random((3, 3)) * [
        [0.0], [1.0], [1.0]
    ]  # fmt: skip
    numbers = [bench.elements[i % len(bench.elements)] for i in range(6)]
    influence = []
    for near in NEAR_CUTOFF:
        positions = np.concatenate([cluster * [-1.0, 1.0, 1.0], cluster + np.array([1.0 - near, 0.0, 0.0])])
        positions *= bench.cutoff
        linked = bench.with_edges(numbers, positions, np.zeros((3, 3)), periodic=False)
        across = (linked.edge_index < 3).sum(dim=0) == 1
        if int(across.sum()) != 2:
            raise AssertionError("the clusters have more than one link")
        apart = linked.clone()
        apart.edge_index, apart.edge_shift = linked.edge_index[:, ~across], linked.edge_shift[~across]
        with_edge, without = (_forces(bench, s) for s in (linked, apart))
        influence.append(
            [float((a - b).norm() / a.norm().clamp_min(1e-300)) for a, b in zip(with_edge, without, strict=True)]
        )
    far, close = influence
    return _order(far[0], close[0]), _order(far[1], close[1])


def _forces(bench: _Bench, structure: Structure) -> tuple[Tensor, Tensor]:
    """PROJECTIONS functions of the features, and their gradients by the positions."""
    moved = structure.clone()
    moved.positions = moved.positions.clone().requires_grad_()
    output = bench.model(moved, edge_vectors(moved))
    values = torch.stack([bench.project(output, which) for which in range(PROJECTIONS)])
    gradients = [torch.autograd.grad(value, moved.positions, retain_graph=True)[0] for value in values]
    return values.detach(), torch.stack(gradients)


def _order(far: float, close: float) -> float:
    """p of an influence that goes like (distance from the cutoff)^p."""
    if close < NOTHING:
        return math.inf
    return math.log(far / close) / math.log(NEAR_CUTOFF[0] / NEAR_CUTOFF[1])


Check = tuple[str, Callable[[_Bench], float], float, str]

_SORT = "sum messages with index_add by centre, and let nothing depend on places in the list"
_COPY = "keep weights in nn.Parameter, buffers and submodules of classes that can be imported (no lambda, no closure)"
_CUTOFF = "decay at the cutoff"
_CUTOFF_CURE = "multiply every message by a function such as lrpot.smooth.taper(distance, cutoff)"

CHECKS: tuple[Check, ...] = (
    ("deepcopy", deep_copy, 0.0, _COPY),
    (
        "shapes and dtypes",
        shapes,
        0.0,
        "return AtomFeatures(scalar (N, features), vector (N, 3, features) or None) in the type of the vectors; make "
        "constants with .to(vectors) or register_buffer",
    ),
    (
        "input is not changed",
        input_is_kept,
        0.0,
        "copy before writing; in-place operations on the batch are not allowed",
    ),
    ("atom without neighbours", lonely_atom, 0.0, "divide by no count of neighbours and no norm that may be zero"),
    ("no edges at all", no_edges, 0.0, "take the number of atoms from batch.numbers, never from edge_index.max()"),
    ("deterministic", determinism, 0.0, "draw no random numbers in forward"),
    ("sees its neighbours", sees_neighbours, 1.0, "compute features from the edge vectors"),
    ("order of edges", order_of_edges, SAME, _SORT),
    (
        "batch = single",
        batch_is_single,
        SAME,
        "let no atom depend on another structure of the batch: no norm over the batch, no mean over all atoms",
    ),
    ("permutation of atoms", permutation, SAME, "let nothing depend on the index of an atom, only on its number"),
    ("rotation", rotation, SAME, "make scalars of distances, angles and norms, and vectors of sums along edges"),
    ("reflection", reflection, SAME, "a vector feature must change its sign under inversion; leave out cross products"),
    (
        "translation and wrapping",
        wrapping,
        SAME,
        "read geometry from the vectors alone, never from positions or shifts",
    ),
    ("one-atom cell", one_atom_cell, SAME, "keep edges from an atom to its own images; tell edges apart, not pairs"),
    ("2 x 1 x 1 supercell", supercell, SAME, "let features depend on the surroundings alone, not on the cell"),
    (
        "gradient against finite differences",
        gradients,
        GRADIENT,
        "keep autograd whole: no detach, no numpy, no rounding",
    ),
    (
        "second derivatives against finite differences",
        second_gradients,
        SECOND_GRADIENT,
        "use twice differentiable operations (silu, not relu), and no autograd.Function with once_differentiable",
    ),
    ("float32 against float64", single_precision, SINGLE_PRECISION, "avoid differences of large numbers in forward"),
    ("state_dict", state_dict, 0.0, _COPY),
    ("pickle", pickling, 0.0, _COPY),
)
GPU_CHECKS: tuple[Check, ...] = (
    (
        "GPU = CPU",
        gpu_is_cpu,
        SAME,
        "make new tensors on the device of the vectors, and constants with register_buffer",
    ),
)
