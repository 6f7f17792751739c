"""PaiNN's messages: compiled loops against loops of Python, tensor operations and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numba
import numba.core.caching
import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import lrpot.threads
from lrpot.backbones import fused as compiled
from lrpot.backbones.messages import FusedMessages, plain_messages, positions_only
from lrpot.backbones.radial import ROWS
from lrpot.errors import ShapeError, StructureError

END, INTERVALS = 4.0, 6  # A; of the splines
ATOMS, EDGES = 6, 40
LONELY = ATOMS - 1  # has no edges

# Relative to the largest number: sums of some ten products. In float32 also the place of an edge in the table, which is
# rounded in units of an interval.
ROUNDING = {torch.float64: 1e-13, torch.float32: 5e-6}
# None of them whole vectors of the processor: the first is all remainder, the others have both.
WIDTHS = [(1, torch.float64), (7, torch.float64), (33, torch.float32)]
widths = pytest.mark.parametrize(("features", "dtype"), WIDTHS, ids=lambda x: str(x))
with_and_without_vectors = pytest.mark.parametrize("with_vectors", [True, False], ids=["vectors", "none"])

Both = tuple[Tensor, Tensor]


class Inputs(NamedTuple):
    """What messages are differentiated by, and between which atoms they go."""

    edge_index: Tensor
    table: Tensor
    vectors: Tensor
    phi: Tensor
    scalar: Tensor
    vector: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [x for x in self[1:] if x is not None]

    def replaced(self, *tensors: Tensor) -> Inputs:
        """The same edges with other tensors, in the order of `tensors`."""
        return Inputs(self.edge_index, *tensors, *([] if len(tensors) == 5 else [None]))

    def leaves(self) -> Inputs:
        return self.replaced(*(x.detach().clone().requires_grad_() for x in self.tensors()))

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.replaced(*(x.to(dtype) for x in self.tensors()))


Messages = Callable[[Inputs], Both]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_inputs(
    features: int = 7,
    dtype: torch.dtype = torch.float64,
    *,
    with_vectors: bool = True,
    atoms: int = ATOMS,
    edges: int = EDGES,
    intervals: int = INTERVALS,
    longest: float = 1.2,
) -> Inputs:
    """Edges in no order, some of an atom to itself, lengths from 0.1 to `longest` times END; the last atom has none.

    The numbers are those of `dtype` whatever precision they are then computed in.
    """
    generator = torch.Generator().manual_seed(1)
    edge_index = torch.randint(0, max(atoms - 1, 1), (2, edges), generator=generator)
    lengths = END * torch.linspace(0.1, longest, edges, dtype=torch.float64)
    lengths = lengths[torch.randperm(edges, generator=generator)]
    vectors = torch.nn.functional.normalize(random(edges, 3, seed=2), dim=1) * lengths[:, None]
    return Inputs(
        edge_index,
        random(intervals + ROWS - 1, 3 * features, seed=3),
        vectors,
        random(atoms, 3 * features, seed=4),
        random(atoms, features, seed=5),
        random(atoms, 3, features, seed=6) if with_vectors else None,
    ).to(dtype)


def edges_of(inputs: Inputs) -> FusedMessages:
    intervals = len(inputs.table) - ROWS + 1
    return FusedMessages(inputs.edge_index, inputs.vectors, len(inputs.scalar), END, intervals)


def fused(inputs: Inputs) -> Both:
    return edges_of(inputs)(inputs.table, inputs.phi, inputs.scalar, inputs.vector)


def plain(inputs: Inputs) -> Both:
    return edges_of(inputs).plainly(inputs.table, inputs.phi, inputs.scalar, inputs.vector)


def by_hand(inputs: Inputs) -> Both:
    """Edge by edge, with the equations as the docstring of `lrpot.backbones.messages` has them."""
    table, vectors, phi, scalar = (x.numpy() for x in inputs[1:5])
    atoms, features = scalar.shape
    before = np.zeros((atoms, 3, features)) if inputs.vector is None else inputs.vector.numpy()
    intervals = len(table) - ROWS + 1
    knots = np.arange(-(ROWS - 1), intervals + ROWS) * (END / intervals)
    filters = BSpline(knots, table, ROWS - 1)
    s, v = scalar.copy(), before.copy()
    for j, i, x in zip(*inputs.edge_index.tolist(), vectors, strict=True):
        r = math.sqrt(x @ x)
        if r < END:
            to_scalar, along_edge, along_vector = (filters(r) * phi[j]).reshape(3, features)
            s[i] += to_scalar
            v[i] += along_edge * (x / r)[:, None] + along_vector * before[j]
    return torch.from_numpy(s), torch.from_numpy(v)


def project(values: Both | list[Tensor], seed: int = 10) -> Tensor:
    """(), a random linear function."""
    return torch.stack([(x * random(*x.shape, seed=seed + n).to(x)).sum() for n, x in enumerate(values)]).sum()


def gradients(messages: Messages, inputs: Inputs) -> list[Tensor]:
    leaves = inputs.leaves()
    return list(grad(project(messages(leaves)), leaves.tensors(), allow_unused=True, materialize_grads=True))


def second_gradients(messages: Messages, inputs: Inputs) -> list[Tensor]:
    """Of a random function of gradients, by all weights and features, and by what is handed back (a and b).

    The gradients are those by edge vectors and by features, which depend on positions in a network of many steps.
    """
    leaves = inputs.leaves()
    outputs = messages(leaves)
    given = [random(*x.shape, seed=20 + n).to(x).requires_grad_() for n, x in enumerate(outputs)]
    with positions_only():
        by = leaves.tensors()[1:]
        first = grad(outputs, by, given, create_graph=True)
    wanted = [x for x in leaves.tensors() if x is not leaves.vectors] + given
    return list(grad(project(list(first), seed=30), wanted, allow_unused=True, materialize_grads=True))


def assert_same(found: Both | list[Tensor], expected: Both | list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert bool(torch.isfinite(other).all())
        scale = float(other.detach().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one.double(), other.double(), rtol=0.0, atol=tolerance * max(scale, 1.0))


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is worth a second thread."""
    before = torch.get_num_threads()
    monkeypatch.setattr(lrpot.threads, "WORTH_A_THREAD", 1)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --- values


@with_and_without_vectors
def test_both_twins_are_the_equations(with_vectors: bool) -> None:
    inputs = make_inputs(with_vectors=with_vectors)
    expected = by_hand(inputs)
    assert float((expected[0] - inputs.scalar).abs().max()) > 1.0
    assert_same(plain(inputs), expected, ROUNDING[torch.float64])
    assert_same(fused(inputs), expected, ROUNDING[torch.float64])


@widths
def test_values(features: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(features, dtype)
    found = fused(inputs)
    assert {x.dtype for x in found} == {dtype}
    assert_same(found, plain(inputs.to(torch.float64)), ROUNDING[dtype])


def test_filters_of_each_edge_need_no_table() -> None:
    """`plain_messages` alone, as devices other than the CPU use it."""
    inputs = make_inputs()
    neighbour, centre = inputs.edge_index
    filters = random(EDGES, 21, seed=7)
    scalar, vector = plain_messages(filters, inputs.vectors, neighbour, centre, *inputs[3:])
    for atom in range(ATOMS):
        s, v = inputs.scalar[atom].clone(), inputs.vector[atom].clone()
        for e in torch.nonzero(centre == atom)[:, 0].tolist():
            j, d = neighbour[e], inputs.vectors[e] / inputs.vectors[e].norm()
            to_scalar, along_edge, along_vector = (filters[e] * inputs.phi[j]).split(7)
            s += to_scalar
            v += along_edge * d[:, None] + along_vector * inputs.vector[j]
        torch.testing.assert_close(scalar[atom], s)
        torch.testing.assert_close(vector[atom], v)


# --- derivatives


@widths
def test_first_derivatives(features: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(features, dtype)
    assert_same(gradients(fused, inputs), gradients(plain, inputs.to(torch.float64)), ROUNDING[dtype])


@widths
def test_second_derivatives_of_functions_of_positions(features: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(features, dtype)
    expected = second_gradients(plain, inputs.to(torch.float64))
    assert all(float(x.abs().max()) > 0.1 for x in expected if x.shape != inputs.scalar.shape)
    assert_same(second_gradients(fused, inputs), expected, ROUNDING[dtype])


def test_derivatives_without_vectors() -> None:
    inputs = make_inputs(with_vectors=False)
    assert_same(gradients(fused, inputs), gradients(plain, inputs), ROUNDING[torch.float64])
    assert_same(second_gradients(fused, inputs), second_gradients(plain, inputs), ROUNDING[torch.float64])


def test_finite_differences_outside_of_the_promise() -> None:
    """First derivatives (the loops') and second ones (the plain road's) by every input, without a twin."""
    inputs = make_inputs(1, atoms=3, edges=5, intervals=3).leaves()

    def function(*tensors: Tensor) -> Both:
        return fused(inputs.replaced(*tensors))

    assert gradcheck(function, inputs.tensors())
    assert gradgradcheck(function, inputs.tensors())


def test_finite_differences_inside_the_promise() -> None:
    """The loops of second derivatives, without a twin."""
    inputs = make_inputs(1, atoms=3, edges=5, intervals=3).leaves()

    def forces(table: Tensor, phi: Tensor, scalar: Tensor, vector: Tensor) -> tuple[Tensor, ...]:
        moved = inputs.replaced(table, inputs.vectors, phi, scalar, vector)
        with positions_only():
            return grad(project(fused(moved)), [inputs.vectors, phi, vector], create_graph=True)

    assert gradcheck(forces, [x for x in inputs.tensors() if x is not inputs.vectors])


def test_outside_of_the_promise_only_direct_dependence_counts() -> None:
    """Where an input of the messages depends on another one, as in the second step of a network."""

    def total(messages: Messages, inputs: Inputs) -> Tensor:
        dependent = inputs._replace(phi=inputs.phi * inputs.vectors.square().sum() * inputs.table.sin().sum())
        return project(messages(dependent))

    inputs = make_inputs().leaves()
    expected = grad(total(plain, inputs), inputs.tensors())
    for create_graph in (False, True):
        found = grad(total(fused, inputs), inputs.tensors(), create_graph=create_graph)
        assert_same(list(found), list(expected), ROUNDING[torch.float64])


def test_the_promise_ends() -> None:
    """Inside of it, no derivative by the table is made; after it, also after an error, all are."""
    inputs = make_inputs().leaves()
    outputs = project(fused(inputs))
    with positions_only():
        (nothing,) = grad(outputs, [inputs.table], retain_graph=True, allow_unused=True)
    assert nothing is None
    with pytest.raises(RuntimeError), positions_only(), positions_only():
        raise RuntimeError
    (something,) = grad(outputs, [inputs.table])
    assert_same([something], gradients(plain, inputs)[:1], ROUNDING[torch.float64])


# --- edges


def test_edges_from_the_cutoff_on_do_nothing() -> None:
    inputs = make_inputs()
    vectors = inputs.vectors.clone()
    vectors[0] = torch.tensor([0.0, END, 0.0])
    inputs = inputs._replace(vectors=vectors)
    beyond = torch.linalg.vector_norm(vectors, dim=1) >= END
    assert beyond[0]
    assert 3 < int(beyond.sum()) < EDGES
    inside = inputs._replace(edge_index=inputs.edge_index[:, ~beyond], vectors=vectors[~beyond])
    assert_same(fused(inputs), fused(inside), ROUNDING[torch.float64])
    found, expected = gradients(fused, inputs), gradients(fused, inside)
    assert not found[1][beyond].any()
    found[1] = found[1][~beyond]
    assert_same(found, expected, ROUNDING[torch.float64])
    assert_same(second_gradients(fused, inputs), second_gradients(plain, inputs), ROUNDING[torch.float64])


def test_the_order_of_edges_does_not_matter() -> None:
    inputs = make_inputs()
    order = torch.argsort(inputs.edge_index[1], stable=True)
    assert not torch.equal(order, torch.arange(EDGES))
    by_centre = inputs._replace(edge_index=inputs.edge_index[:, order], vectors=inputs.vectors[order])
    assert_same(fused(inputs), fused(by_centre), ROUNDING[torch.float64])
    found = gradients(fused, inputs)
    found[1] = found[1][order]
    assert_same(found, gradients(fused, by_centre), ROUNDING[torch.float64])


@with_and_without_vectors
def test_without_edges_features_stay(with_vectors: bool) -> None:
    inputs = make_inputs(with_vectors=with_vectors, edges=0)
    scalar, vector = fused(inputs)
    assert torch.equal(scalar, inputs.scalar)
    assert torch.equal(vector, torch.zeros_like(vector) if inputs.vector is None else inputs.vector)
    assert_same(gradients(fused, inputs), gradients(plain, inputs), 0.0)
    assert_same(second_gradients(fused, inputs), second_gradients(plain, inputs), 0.0)


def test_one_atom_and_its_images() -> None:
    inputs = make_inputs(atoms=1, edges=8)
    assert not inputs.edge_index.any()
    assert_same(fused(inputs), by_hand(inputs), ROUNDING[torch.float64])
    assert_same(gradients(fused, inputs), gradients(plain, inputs), ROUNDING[torch.float64])
    assert_same(second_gradients(fused, inputs), second_gradients(plain, inputs), ROUNDING[torch.float64])


def test_an_atom_without_edges_keeps_its_features() -> None:
    inputs = make_inputs()
    assert LONELY not in inputs.edge_index
    scalar, vector = fused(inputs)
    assert torch.equal(scalar[LONELY], inputs.scalar[LONELY])
    assert torch.equal(vector[LONELY], inputs.vector[LONELY])
    by_phi = gradients(fused, inputs)[2]
    assert not by_phi[LONELY].any()
    assert by_phi[0].any()


def test_what_is_not_a_number_stays_so() -> None:
    """Vector instructions may not hide it, and it goes no further than its edge."""
    inputs = make_inputs()
    centre = int(inputs.edge_index[1, 0])
    for bad in (math.nan, math.inf):
        vectors = inputs.vectors.clone()
        vectors[0, 1] = bad
        scalar, vector = fused(inputs._replace(vectors=vectors))
        assert bool(vector[centre].isnan().any())
        others = torch.arange(ATOMS) != centre
        assert bool(scalar[others].isfinite().all())
        assert bool(vector[others].isfinite().all())


@pytest.mark.parametrize("atom", [-1, ATOMS])
@pytest.mark.parametrize("row", [0, 1])
def test_edges_of_no_atom_are_refused(atom: int, row: int) -> None:
    inputs = make_inputs()
    inputs.edge_index[row, 3] = atom
    with pytest.raises(StructureError, match=f"names atom {atom} of {ATOMS}; count atoms from 0"):
        fused(inputs)


def test_edges_without_a_vector_are_refused() -> None:
    inputs = make_inputs()
    with pytest.raises(ShapeError, match=r"edge_index is \(2, 40\) and edge vectors are \(39, 3\)"):
        fused(inputs._replace(vectors=inputs.vectors[1:]))
    with pytest.raises(ShapeError, match=r"edge_index is \(40, 2\)"):
        fused(inputs._replace(edge_index=inputs.edge_index.mT))


# --- memory, threads and disk


def test_layouts_in_memory_do_not_matter() -> None:
    inputs = make_inputs()

    def other_layout(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT

    strided = Inputs(other_layout(inputs.edge_index), *(other_layout(x) for x in inputs.tensors()))
    assert not any(x.is_contiguous() for x in strided)
    found = fused(strided)
    assert all(x.is_contiguous() for x in found)
    assert_same(found, fused(inputs), 0.0)
    assert_same(gradients(fused, strided), gradients(fused, inputs), 0.0)
    assert_same(second_gradients(fused, strided), second_gradients(fused, inputs), 0.0)


def test_inputs_are_not_changed() -> None:
    inputs = make_inputs().leaves()
    before = [x.detach().clone() for x in (inputs.edge_index, *inputs.tensors())]
    second_gradients(fused, inputs)
    for x, kept in zip((inputs.edge_index, *inputs.tensors()), before, strict=True):
        assert torch.equal(x, kept)


@pytest.mark.parametrize("atoms", [1, ATOMS])
def test_two_threads_give_what_one_gives(two_threads: None, monkeypatch: pytest.MonkeyPatch, atoms: int) -> None:
    inputs = make_inputs(atoms=atoms)
    assert lrpot.threads.parts(edges_of(inputs).work(7)) == 2
    shared = (fused(inputs), gradients(fused, inputs), second_gradients(fused, inputs))
    monkeypatch.setattr(lrpot.threads, "WORTH_A_THREAD", 10**9)
    assert lrpot.threads.parts(edges_of(inputs).work(7)) == 1
    alone = (fused(inputs), gradients(fused, inputs), second_gradients(fused, inputs))
    for one, other in zip(shared, alone, strict=True):
        for n, (x, y) in enumerate(zip(one, other, strict=True)):
            # each thread adds up a table of its own; all else is one atom's, in one order
            by_table = len(one) > 2 and n == 0
            assert_same([x], [y], ROUNDING[torch.float64] if by_table else 0.0)


def test_loops_need_no_place_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs()
    expected = fused(inputs)
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(by_hand)
    fresh = compiled.loops.__wrapped__  # past what this process has compiled
    monkeypatch.setattr(compiled, "loops", fresh)
    assert_same(fused(inputs), expected, 0.0)
