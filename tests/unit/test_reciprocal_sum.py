"""The reciprocal sum and its Coulomb complement: the definition, both engines, derivatives, batches, kept values."""

from __future__ import annotations

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError, ShapeError, StructureError
from lrpot.kspace import FCN, CoulombComplement, FreeKernel, GaussianCoulomb, LearnedKernel, ReciprocalSum
from lrpot.kspace.energy import splitting
from lrpot.smooth import taper
from lrpot.structure import Structure, collate, edge_vectors
from lrpot.units import COULOMB_CONSTANT

ENGINE_TOLERANCE = 1e-12  # relative, float64
DRIFT_TOLERANCE = 1e-10  # relative; 1000 A from the origin a phase keeps 12 digits
DEFINITION_TOLERANCE = 1e-12  # relative
FLOAT32_TOLERANCE = 1e-5  # relative, of charges in float32 (energies and forces)
BATCH_TOLERANCE = 1e-13  # relative
K_CUTOFF = 6.0  # 1/A


def learned(seed: int = 0, k_cutoff: float = K_CUTOFF) -> LearnedKernel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fcn = FCN(k_cutoff, basis=8, hidden=8).double()
        nn.init.normal_(fcn.last.weight)
    return LearnedKernel(GaussianCoulomb(0.6), fcn)


def charges_of(structure: Structure, n_channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(structure.num_nodes, n_channels, generator=generator, dtype=torch.float64)


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def crystals(random_crystal) -> dict[str, Structure]:
    drifted = random_crystal(4, 8)
    drifted.positions = drifted.positions + torch.tensor([1000.0, -1000.0, 1000.0], dtype=torch.float64)
    return {
        "triclinic": random_crystal(0, 8),
        "left-handed": random_crystal(1, 8, left_handed=True),
        "one atom": random_crystal(2, 1),
        "unwrapped": random_crystal(3, 8, unwrapped=True),
        "drifted": drifted,
    }


CASES = ["triclinic", "left-handed", "one atom", "unwrapped", "drifted"]


# --- the definition


@pytest.mark.parametrize("engine", ["separable", "dense"])
@pytest.mark.parametrize("envelope", [0.7, 1.0])
@pytest.mark.parametrize("left_handed", [False, True])
def test_energy_is_the_sum_over_the_whole_sphere(
    engine: str, envelope: float, left_handed: bool, random_crystal
) -> None:
    s = random_crystal(7, 3, left_handed=left_handed)
    q = charges_of(s, 2)
    k_cutoff = 3.5
    reciprocal = ReciprocalSum(learned(k_cutoff=k_cutoff), k_cutoff, engine=engine, envelope=envelope)
    cell, positions = s.cell[0].numpy(), s.positions.numpy()
    b = 2 * np.pi * np.linalg.inv(cell).T
    expected, terms = 0.0, 0
    for n in product(range(-6, 7), repeat=3):
        k = np.array(n) @ b
        length = np.linalg.norm(k)
        if 0 < length < k_cutoff:
            terms += 1
            tensor = torch.tensor([length])
            phi = reciprocal.kernel(tensor).item()
            phi *= 1.0 if envelope == 1.0 else taper(tensor, k_cutoff, envelope).item()
            amplitudes = np.exp(-1j * positions @ k) @ q.numpy()
            expected += phi * (np.abs(amplitudes) ** 2).sum() / abs(np.linalg.det(cell))
    assert terms > 20
    found = reciprocal(s.positions, q, s.cell)
    assert found.shape == (1,)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=DEFINITION_TOLERANCE)


def test_channels_add(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s, 3)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    each = sum(reciprocal(s.positions, q[:, c : c + 1], s.cell) for c in range(3))
    torch.testing.assert_close(reciprocal(s.positions, q, s.cell), each, rtol=DEFINITION_TOLERANCE, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", ["learned", "free"])
def test_engines_agree_in_energy_and_all_gradients(case: str, kernel: str, random_crystal) -> None:
    s = crystals(random_crystal)[case]
    kernel = learned() if kernel == "learned" else FreeKernel(learned().fcn)
    results = []
    for engine in ("separable", "dense"):
        inputs = [x.clone().requires_grad_() for x in (s.positions, charges_of(s, 2), s.cell)]
        energy = ReciprocalSum(kernel, K_CUTOFF, engine=engine)(*inputs)
        results.append([energy.detach(), *torch.autograd.grad(energy.sum(), inputs)])
    tolerance = DRIFT_TOLERANCE if case == "drifted" else ENGINE_TOLERANCE
    for name, separable, dense in zip(("energy", "positions", "charges", "cell"), *results, strict=True):
        if case == "one atom" and name == "positions":
            assert max(separable.abs().max(), dense.abs().max()) < 1e-12
        elif case == "drifted" and name == "cell":
            # fixed positions far away under a changed cell: the force times 1000 A
            assert relative(separable, dense) < 1e-9
        else:
            assert relative(separable, dense) < tolerance, name


def test_float32_charges_keep_their_digits_a_thousand_angstrom_away(random_crystal) -> None:
    """Phases are taken of the float64 positions less whole cells, not of large numbers in float32."""
    s = random_crystal(4, 8)
    q = charges_of(s)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    results = []
    for drift, charges in ((0.0, q), (0.0, q.float()), (1000.0, q.float())):
        positions = (s.positions + drift).requires_grad_()
        energy = reciprocal(positions, charges, s.cell)
        results.append((energy.detach(), torch.autograd.grad(energy.sum(), positions)[0]))
    for other in results[1:]:
        for one, expected in zip(other, results[0], strict=True):
            assert 0 < relative(one, expected) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("engine", ["separable", "dense"])
def test_first_and_second_derivatives(engine: str, random_crystal) -> None:
    s = random_crystal(2, 2, left_handed=True)
    reciprocal = ReciprocalSum(learned(k_cutoff=2.8), 2.8, engine=engine, envelope=0.5)
    inputs = tuple(x.clone().requires_grad_() for x in (s.positions, charges_of(s), s.cell))
    assert torch.autograd.gradcheck(reciprocal, inputs)
    assert torch.autograd.gradgradcheck(reciprocal, inputs)


@pytest.mark.parametrize("engine", ["separable", "dense"])
def test_batch_equals_single(engine: str, random_crystal) -> None:
    structures = [random_crystal(seed, n, left_handed=n % 2 == 0) for seed, n in enumerate((5, 1, 8, 2))]
    charges = [charges_of(s, 2, seed) for seed, s in enumerate(structures)]
    reciprocal = ReciprocalSum(learned(), K_CUTOFF, engine=engine)
    batch = collate(structures)
    together = reciprocal(batch.positions, torch.cat(charges), batch.cell, batch.batch)
    alone = torch.cat([reciprocal(s.positions, q, s.cell) for s, q in zip(structures, charges, strict=True)])
    assert together.shape == (4,)
    torch.testing.assert_close(together, alone, rtol=BATCH_TOLERANCE, atol=0)


def test_inputs_are_left_as_they_are(random_crystal) -> None:
    s = random_crystal(0, 5, unwrapped=True)
    q = charges_of(s)
    before = [x.clone() for x in (s.positions, q, s.cell)]
    ReciprocalSum(learned(), K_CUTOFF)(s.positions, q, s.cell)
    assert all(torch.equal(x, y) for x, y in zip(before, (s.positions, q, s.cell), strict=True))


# --- kernel values that are kept from call to call


def frozen() -> ReciprocalSum:
    return ReciprocalSum(learned(), K_CUTOFF).requires_grad_(False)


def uncached(reciprocal: ReciprocalSum, s: Structure, q: Tensor) -> Tensor:
    """The energy by a sum that has never been called."""
    fresh = copy.deepcopy(reciprocal)
    fresh._fixed_cells.clear()
    return fresh(s.positions, q, s.cell).detach()


def test_values_are_kept_for_fixed_weights_and_cells(random_crystal) -> None:
    s, other = random_crystal(0, 6), random_crystal(1, 6)
    q = charges_of(s)
    reciprocal = frozen()
    first = reciprocal(s.positions, q, s.cell)
    calls = []
    reciprocal.kernel.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(reciprocal(s.positions, q, s.cell), first)
    reciprocal(s.positions + 0.1 * q, q, s.cell)
    assert calls == []
    of_other = reciprocal(other.positions, q, other.cell)
    assert len(calls) == 1
    assert torch.equal(of_other, uncached(reciprocal, other, q))
    assert torch.equal(reciprocal(s.positions, q, s.cell), first)


def step(reciprocal: ReciprocalSum) -> None:
    """One step of an optimiser, between two calls with frozen weights, as in predict, fit, predict."""
    reciprocal.requires_grad_(True)
    optimizer = torch.optim.Adam(reciprocal.parameters(), lr=0.1)
    reciprocal.kernel(torch.linspace(0.1, 5.0, 9, dtype=torch.float64)).sum().backward()
    optimizer.step()
    reciprocal.requires_grad_(False)


def load(reciprocal: ReciprocalSum) -> None:
    reciprocal.load_state_dict({name: 2 * value for name, value in reciprocal.state_dict().items()})


def load_fcn_alone(reciprocal: ReciprocalSum) -> None:
    fcn = reciprocal.kernel.fcn
    fcn.load_state_dict({name: 2 * value for name, value in fcn.state_dict().items()})


def assign(reciprocal: ReciprocalSum) -> None:
    fcn = reciprocal.kernel.fcn
    fcn.load_state_dict({name: 2 * value for name, value in fcn.state_dict().items()}, assign=True)
    reciprocal.requires_grad_(False)


def scale_in_place(reciprocal: ReciprocalSum) -> None:
    with torch.no_grad():
        reciprocal.kernel.fcn.last.weight.mul_(3.0)


def single_and_double(reciprocal: ReciprocalSum) -> None:
    reciprocal.kernel.fcn.float()
    reciprocal.kernel.fcn.double()


def wider_envelope(reciprocal: ReciprocalSum) -> None:
    reciprocal.envelope = 0.3


def larger_sphere(reciprocal: ReciprocalSum) -> None:
    reciprocal.k_cutoff = 1.1 * K_CUTOFF


CHANGES = [step, load, load_fcn_alone, assign, scale_in_place, single_and_double, wider_envelope, larger_sphere]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_change_of_the_kernel_goes_unseen(change, random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    before = reciprocal(s.positions, q, s.cell)
    change(reciprocal)
    after = reciprocal(s.positions, q, s.cell)
    assert relative(after, before) > 1e-12
    assert torch.equal(after, uncached(reciprocal, s, q))


@pytest.mark.parametrize("mode", [True, False])
def test_switching_between_training_and_evaluation_forgets(mode: bool, random_crystal) -> None:
    s = random_crystal(0, 6)
    reciprocal = frozen()
    reciprocal(s.positions, charges_of(s), s.cell)
    assert reciprocal._fixed_cells
    reciprocal.train(mode)
    assert not reciprocal._fixed_cells


def test_kept_values_do_not_cut_the_gradient_by_the_cell(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    gradients = []
    for warm in (False, True):
        if warm:
            reciprocal(s.positions, q, s.cell)
        cell = s.cell.clone().requires_grad_()
        gradients.append(torch.autograd.grad(reciprocal(s.positions, q, cell).sum(), cell)[0])
    assert torch.equal(*gradients)


def test_kept_values_do_not_cut_the_gradient_by_the_weights(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    reciprocal(s.positions, q, s.cell)
    reciprocal.requires_grad_(True)
    # twice the same cell in one batch: the values are shared, the gradient counts both
    two = collate([s, s])
    energy = reciprocal(two.positions, torch.cat([q, q]), two.cell, two.batch).sum()
    (gradient,) = torch.autograd.grad(energy, reciprocal.kernel.fcn.last.weight)
    (once,) = torch.autograd.grad(reciprocal(s.positions, q, s.cell).sum(), reciprocal.kernel.fcn.last.weight)
    assert float(once.abs().max()) > 0
    torch.testing.assert_close(gradient, 2 * once, rtol=1e-12, atol=0)


def test_a_call_in_inference_mode_spoils_no_later_gradient(random_crystal) -> None:
    s = random_crystal(9, 6)
    q = charges_of(s)
    reciprocal = frozen()
    with torch.inference_mode():
        inferred = reciprocal(s.positions, q, s.cell).item()
    positions = s.positions.clone().requires_grad_()
    energy = reciprocal(positions, q, s.cell)
    assert energy.item() == inferred
    assert float(torch.autograd.grad(energy.sum(), positions)[0].abs().max()) > 0


def test_the_number_of_kept_cells_is_bounded(random_crystal) -> None:
    s = random_crystal(0, 3)
    reciprocal = frozen()
    for n in range(100):
        reciprocal(s.positions, charges_of(s), s.cell * (1 + 1e-4 * n))
    assert 0 < len(reciprocal._fixed_cells) <= 65


# --- refusals


def test_shapes_that_disagree_are_refused(random_crystal) -> None:
    s = random_crystal(0, 4)
    q = charges_of(s)
    two = s.cell.expand(2, 3, 3)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    for arguments, message in [
        ((s.positions[:, :2], q, s.cell), r"\(4, 2\); expected \(N, 3\)"),
        ((s.positions, q[:3], s.cell), r"\(3, 1\); expected \(4, channels\)"),
        ((s.positions, q[:, 0], s.cell), r"\(4,\); expected \(4, channels\)"),
        ((s.positions, q, two), "2 cells but no batch index"),
        ((s.positions, q, two, torch.tensor([0, 1])), r"\(2,\); expected \(4,\)"),
        ((s.positions, q, two, torch.tensor([0, 1, 0, 1])), "not ascending"),
    ]:
        with pytest.raises(ShapeError, match=message):
            reciprocal(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "nufft"}, "'nufft' is not known; choose one of dense, separable"),
        ({"k_cutoff": 0.0}, "must be positive"),
        ({"k_cutoff": math.nan}, "must be positive"),
        ({"envelope": 1.5}, "between 0 and 1"),
        ({"envelope": -0.1}, "between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReciprocalSum(learned(), **{"k_cutoff": K_CUTOFF, **settings})


def test_a_cell_without_wave_vectors_is_refused(random_crystal) -> None:
    s = random_crystal(2, 1)
    with pytest.raises(StructureError, match="raise k_cutoff"):
        ReciprocalSum(learned(), 0.5)(s.positions, charges_of(s), s.cell)


# --- the complement


@pytest.mark.parametrize("left_handed", [False, True])
def test_complement_is_pairs_less_self_less_background(left_handed: bool, random_crystal) -> None:
    cutoff, onset = 5.0, 0.7
    s = add_edges(random_crystal(5, 5, left_handed=left_handed), cutoff)
    q = charges_of(s, 2)
    kernel = GaussianCoulomb(1.1)
    alpha = kernel.alpha
    expected = 0.0
    images = np.array(list(product(range(-6, 7), repeat=3))) @ s.cell[0].numpy()
    for i, j in product(range(5), repeat=2):
        for image in images:
            r = np.linalg.norm(s.positions[j].numpy() + image - s.positions[i].numpy())
            if 0 < r < cutoff:
                smooth = taper(torch.tensor([r]), cutoff, onset).item()
                expected += 0.5 * float(q[i] @ q[j]) * COULOMB_CONSTANT * math.erfc(alpha * r) / r * smooth
    expected -= COULOMB_CONSTANT * alpha / math.sqrt(math.pi) * float((q**2).sum())
    volume = abs(float(torch.linalg.det(s.cell[0])))
    net = float((q.sum(dim=0) ** 2).sum())
    assert net > 0.1
    expected -= COULOMB_CONSTANT * math.pi / (2 * alpha**2 * volume) * net
    index = torch.zeros_like(s.numbers)
    distances = torch.linalg.vector_norm(edge_vectors(s), dim=1)
    found = CoulombComplement(kernel, cutoff, onset=onset)(q, s.cell, index, s.edge_index, distances)
    assert found.item() == pytest.approx(expected, rel=DEFINITION_TOLERANCE)


def test_pair_term_is_continuous_to_the_second_derivative_at_the_cutoff() -> None:
    complement = CoulombComplement(GaussianCoulomb(2.0), 4.0, onset=0.8)
    r = torch.tensor([4.0 - 1e-6, 4.0, 4.5], dtype=torch.float64, requires_grad=True)
    value = complement.pair(r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert COULOMB_CONSTANT * math.erfc(complement.alpha * 4.0) / 4.0 > 0.1  # without the taper there is a step
    assert value.abs().max().item() < 1e-14
    assert first.abs().max().item() < 1e-9
    assert second.abs().max().item() < 1e-3


def test_complement_of_a_batch_is_that_of_each(random_crystal) -> None:
    structures = [random_crystal(seed, n) for seed, n in enumerate((5, 1, 7))]
    charges = [charges_of(s, 1, seed) for seed, s in enumerate(structures)]
    complement = CoulombComplement(GaussianCoulomb(1.0), 4.0)

    def energy(s, q: Tensor, index: Tensor) -> Tensor:
        return complement(q, s.cell, index, s.edge_index, torch.linalg.vector_norm(edge_vectors(s), dim=1))

    batch = collate(structures)
    together = energy(batch, torch.cat(charges), batch.batch)
    alone = [energy(s, q, torch.zeros_like(s.numbers)) for s, q in zip(structures, charges, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=BATCH_TOLERANCE, atol=0)


@pytest.mark.parametrize(("cutoff", "k_cutoff"), [(4.0, 8.0), (6.0, 3.0)])
def test_splitting_cuts_both_sums_at_the_same_depth(cutoff: float, k_cutoff: float) -> None:
    sigma, left_out = splitting(cutoff, k_cutoff)
    alpha = GaussianCoulomb(sigma).alpha
    assert math.exp(-((alpha * cutoff) ** 2)) == pytest.approx(left_out, rel=1e-12)
    assert math.exp(-(k_cutoff**2) / (4 * alpha**2)) == pytest.approx(left_out, rel=1e-12)
