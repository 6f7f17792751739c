"""Constrained minima: against the linear equations, derivatives of both orders, structures apart, failures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpot.charges import minimum as module
from lrpot.charges.minimum import Solver, fixed_minimum, minimum
from lrpot.charges.preconditioner import Preconditioner
from lrpot.errors import ConvergenceError
from lrpot.kspace.electrostatics import Product

COUNTS = [3, 1, 4]
TOLERANCE = 1e-8  # e, of charges by iterations: they leave 1e-9 of the potentials
DIRECT_TOLERANCE = 1e-13
TOTAL_TOLERANCE = 1e-13  # e


class Matrices:
    """H as one matrix for each structure; see `Quadratic`."""

    precision = torch.float64

    def __init__(self, matrices: Sequence[Tensor], waves: Sequence[Tensor | None] | None = None) -> None:
        self.tensors = matrices
        self.counts = [len(matrix) for matrix in matrices]
        self.index = torch.repeat_interleave(torch.arange(len(matrices)), torch.tensor(self.counts))
        self.waves = waves
        self.rough: Sequence[Tensor] | None = None
        self.many_columns = True

    @property
    def diagonal(self) -> Tensor:
        return torch.cat([matrix.diagonal() for matrix in self.tensors])

    def rough_product(self) -> Product | None:
        if self.rough is None:
            return None
        matrices = self.rough
        return lambda x: torch.cat([m @ part for m, part in zip(matrices, x.split(self.counts), strict=True)])

    def long_waves(self) -> Sequence[Tensor | None]:
        return [None] * len(self.counts) if self.waves is None else self.waves

    def energy(self, charges: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        parts = zip(charges.split(self.counts), tensors, strict=True)
        return torch.stack([0.5 * q @ matrix @ q for q, matrix in parts])

    def product(self) -> Product:
        matrices = [matrix.detach() for matrix in self.tensors]
        return lambda x: torch.cat([m @ part for m, part in zip(matrices, x.split(self.counts), strict=True)])


@pytest.fixture(params=["direct", "iterations"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "iterations":
        monkeypatch.setattr(module, "DIRECT", 0)
    return request.param


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(roots: Sequence[Tensor]) -> Matrices:
    return Matrices([root @ root.mT + torch.eye(len(root), dtype=torch.float64) for root in roots])


def roots(counts: Sequence[int] = COUNTS) -> list[Tensor]:
    return [random(n, n, seed=g) for g, n in enumerate(counts)]


TOTAL = torch.tensor([0.0, -1.0, 2.5], dtype=torch.float64)


def by_equations(matrix: Tensor, linear: Tensor, total: float) -> np.ndarray:
    """The charges from [[H, 1], [1, 0]] [q, -mu] = [-b, Q]."""
    n = len(matrix)
    whole = np.ones((n + 1, n + 1))
    whole[:n, :n], whole[n, n] = matrix.numpy(), 0.0
    return np.linalg.solve(whole, np.append(-linear.numpy(), total))[:n]


def test_minimum_solves_the_linear_equations(road: str) -> None:
    quadratic, linear = positive(roots()), random(8, seed=9)
    energy, charges = minimum(quadratic, linear, TOTAL)
    parts = zip(quadratic.tensors, linear.split(COUNTS), TOTAL.tolist(), strict=True)
    expected = np.concatenate([by_equations(*part) for part in parts])
    tolerance = DIRECT_TOLERANCE if road == "direct" else TOLERANCE
    np.testing.assert_allclose(charges, expected, rtol=0, atol=tolerance)
    sums = torch.stack([q.sum() for q in charges.split(COUNTS)])
    torch.testing.assert_close(sums, TOTAL, rtol=0, atol=TOTAL_TOLERANCE)
    q = torch.from_numpy(expected)
    by_hand = [
        b @ q + 0.5 * q @ m @ q
        for m, b, q in zip(quadratic.tensors, linear.split(COUNTS), q.split(COUNTS), strict=True)
    ]
    torch.testing.assert_close(energy, torch.stack(by_hand), rtol=1e-12, atol=0)


def test_no_other_charges_have_a_lower_energy(road: str) -> None:
    quadratic, linear = positive(roots()), random(8, seed=9)
    energy, charges = minimum(quadratic, linear, TOTAL)
    for seed in range(5):
        step = torch.cat([part - part.mean() for part in random(8, seed=seed).split(COUNTS)])
        other = charges + 0.1 * step
        raised = [part.sum() for part in (linear * other).split(COUNTS)]
        raised = torch.stack(raised) + quadratic.energy(other, quadratic.tensors) - energy
        assert bool((raised[[0, 2]] > 1e-4).all())


@pytest.mark.parametrize("output", ["energy", "charges", "both"])
def test_first_and_second_derivatives(output: str, road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # differences see the residual a million times larger
    monkeypatch.setattr(module, "TOLERANCE", {torch.float64: 1e-15})

    def function(linear: Tensor, *given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        energy, charges = minimum(positive(given), linear, TOTAL[1:])
        return {"energy": energy, "charges": charges, "both": (energy, charges)}[output]

    inputs = [random(4, seed=9), *roots([1, 3])]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_fixed_charges_give_the_first_derivatives_of_the_energy() -> None:
    linear, given = random(8, seed=9).requires_grad_(), [root.requires_grad_() for root in roots()]
    weights = random(3, seed=3)
    found = []
    for function in (minimum, fixed_minimum):
        energy, charges = function(positive(given), linear, TOTAL)
        found.append(torch.autograd.grad((weights * energy).sum(), [linear, *given]))
    assert not charges.requires_grad
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_one_structure_does_not_know_of_the_others(road: str) -> None:
    together = minimum(positive(roots()), random(8, seed=9), TOTAL)[1].split(COUNTS)
    for root, linear, total, charges in zip(roots(), random(8, seed=9).split(COUNTS), TOTAL, together, strict=True):
        alone = minimum(positive([root]), linear, total[None])[1]
        torch.testing.assert_close(alone, charges, rtol=0, atol=2 * TOLERANCE)


def test_one_solver_serves_many_right_hand_sides(road: str) -> None:
    solver = Solver(positive(roots()))
    for seed in (9, 10):
        fresh = Solver(positive(roots()))(random(8, seed=seed), TOTAL)
        torch.testing.assert_close(solver(random(8, seed=seed), TOTAL), fresh, rtol=0, atol=1e-13)


def test_preconditioner_is_the_constrained_inverse() -> None:
    counts = [5, 3]
    index = torch.tensor([0] * 5 + [1] * 3)
    waves = [random(5, 2, seed=1), None]
    rest = random(8, seed=2).exp()
    added = torch.cat([(waves[0] ** 2).sum(dim=1), torch.zeros(3, dtype=torch.float64)])
    small = added[:5].max()
    rest = rest + small  # so that it is more than a quarter of the diagonal
    matrices = [torch.diag(rest[:5]) + waves[0] @ waves[0].mT, torch.diag(rest[5:])]
    precondition = Preconditioner(rest + added, waves, index, counts)
    residual = random(8, seed=4)
    expected = [by_equations(m, -r, 0.0) for m, r in zip(matrices, residual.split(counts), strict=True)]
    np.testing.assert_allclose(precondition(residual), np.concatenate(expected), rtol=0, atol=1e-13)
    total = torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = [by_equations(m, 0.0 * r, t) for m, r, t in zip(matrices, residual.split(counts), total, strict=True)]
    np.testing.assert_allclose(precondition.spread(total), np.concatenate(expected), rtol=0, atol=1e-13)


def test_waves_save_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eigenvalues that one cannot tell from the diagonal are given as waves."""
    monkeypatch.setattr(module, "DIRECT", 0)
    waves = random(40, 6, seed=1)
    matrix = waves @ waves.mT + torch.diag(5.0 + random(40, seed=2) ** 2)
    steps = []
    for known in (None, [waves]):
        solver = Solver(Matrices([matrix], known))
        product, calls = solver.product, []
        solver.product = lambda x, product=product, calls=calls: calls.append(1) or product(x)
        found = solver(random(40, seed=3), torch.zeros(1, dtype=torch.float64))
        np.testing.assert_allclose(found, by_equations(matrix, random(40, seed=3), 0.0), rtol=0, atol=TOLERANCE)
        steps.append(len(calls))
    assert steps[1] < steps[0] / 2


@pytest.mark.parametrize("error", [1e-4, 0.3, 30.0])
def test_a_rough_matrix_changes_nothing_but_the_road(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly right it saves products; wrong, even without a minimum, it is noticed."""
    monkeypatch.setattr(module, "DIRECT", 0)
    counts = [40, 30]
    quadratic = positive(roots(counts))
    linear, total = random(70, seed=9), TOTAL[:2]
    steps, results = [], []
    for rough in (None, [m + error * 0.5 * (r + r.mT) for m, r in zip(quadratic.tensors, roots(counts), strict=True)]):
        quadratic.rough = rough
        solver = Solver(quadratic)
        product, calls = solver.product, []
        solver.product = lambda x, product=product, calls=calls: calls.append(1) or product(x)
        results.append(solver(linear, total))
        steps.append(len(calls))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=10 * TOLERANCE)
    if error < 1e-3:
        assert not torch.equal(results[1], results[0])
        assert steps[1] < steps[0] / 3


# --- failures


def test_energy_without_a_minimum_is_an_error(road: str) -> None:
    good, bad = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    bad[0, 1] = bad[1, 0] = 1.5  # e and -e on two atoms gain energy
    with pytest.raises(ConvergenceError, match=r"structure 1: the charges of its 3 atoms have no equilibrium"):
        minimum(Matrices([good, bad]), random(6), torch.zeros(2, dtype=torch.float64))


def test_negative_for_the_sum_alone_is_no_error(road: str) -> None:
    """Only exchanges of charge at a fixed sum matter."""
    matrix = torch.eye(3, dtype=torch.float64) - 0.9
    assert float(torch.linalg.eigvalsh(matrix)[0]) < -1.0
    charges = minimum(Matrices([matrix + 0.0]), random(3), torch.ones(1, dtype=torch.float64))[1]
    np.testing.assert_allclose(charges, by_equations(matrix, random(3), 1.0), rtol=0, atol=TOLERANCE)


def test_too_few_iterations_are_an_error_that_says_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIRECT", 0)
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    words = (
        r"structure \d: after 2 iterations .* of its \d atoms leave a residual of \d\.\de.\d+ eV/e, more than .* look"
    )
    with pytest.raises(ConvergenceError, match=words):
        minimum(positive(roots()), random(8, seed=9), TOTAL)


def test_an_electronegativity_that_is_not_finite_is_named(road: str) -> None:
    linear = random(8)
    linear[5] = torch.nan
    with pytest.raises(ConvergenceError, match=r"structure 2: the electronegativity of atom 5 is not finite"):
        minimum(positive(roots()), linear, TOTAL)


def test_a_matrix_that_is_not_finite_is_an_error(road: str) -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 1] = matrix[1, 0] = torch.nan
    with pytest.raises(ConvergenceError, match="structure 0"):
        minimum(Matrices([matrix]), random(3), torch.zeros(1, dtype=torch.float64))
