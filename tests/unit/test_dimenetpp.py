"""DimeNet++ on crystals: the plain formula over triplets, what must change nothing, derivatives, and edges of edges."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.special import eval_legendre, spherical_jn
from torch import Tensor

from lrpot import LRCalculator
from lrpot.backbones import DimeNetPlusPlus
from lrpot.backbones.edge_pairs import EdgeRows, legendre_of_pairs, reverse_pairs
from lrpot.backbones.spherical_bessel import SphericalBesselBasis, bessel_zeros
from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError
from lrpot.model_file import ModelInfo, load, save
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, edge_vectors, make_structure

CUTOFF = 4.0  # A
EXACT = 1e-11  # relative to the largest number: sums in another order
STEP, DIFFERENCES = 1e-4, 1e-7  # A; relative error of central differences
SETTINGS = {
    "features": 10,
    "interactions": 2,
    "triplet_features": 6,
    "basis_features": 4,
    "output_features": 12,
    "radial_basis": 3,
    "spherical_basis": 4,
    "cutoff": CUTOFF,
}


def network(**changed: int | float) -> DimeNetPlusPlus:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = DimeNetPlusPlus(**{**SETTINGS, **changed}).double()  # type: ignore[arg-type]
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)  # biases start at zero and would hide
    return model


@pytest.fixture(scope="module")
def model() -> DimeNetPlusPlus:
    return network()


def crystal(numbers, positions, cell, *, periodic: bool = True, cutoff: float = CUTOFF) -> Structure:
    return add_edges(make_structure(numbers, positions, cell, [periodic] * 3), cutoff)


def rock_salt(half: float = 2.8, *, rattle: float = 0.0) -> Structure:
    """The primitive cell, in which every triplet along an axis is exactly collinear."""
    cell = half * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=float)
    positions = np.array([[0.0, 0.0, 0.0], [half, half, half]])
    positions += rattle * np.random.default_rng(0).normal(size=(2, 3))
    return crystal([11, 17], positions, cell)


def weights(model: DimeNetPlusPlus) -> Tensor:
    return torch.randn(model.features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def energy_and_forces(model: DimeNetPlusPlus, s: Structure) -> tuple[Tensor, Tensor]:
    """A fixed function of the features of each atom, (N,), and minus the gradient of its sum, (N, 3)."""
    moved = copy.copy(s)
    moved.positions = s.positions.clone().requires_grad_()
    energies = model(moved, edge_vectors(moved)).scalar @ weights(model)
    (gradient,) = torch.autograd.grad(energies.sum(), moved.positions, materialize_grads=True)
    return energies.detach(), -gradient


def assert_same(one: Tensor, other: Tensor, tolerance: float = EXACT) -> None:
    scale = float(other.abs().max())
    assert scale > 1e-3
    assert float((one - other).abs().max()) < tolerance * scale


# --- the plain formula


def triplets(s: Structure) -> list[tuple[int, int]]:
    """(edge k -> j, edge j -> i) by looking at all pairs; without i itself, in its own image, as k."""
    neighbour, centre = s.edge_index.tolist()
    shift = s.edge_shift.tolist()
    found = []
    for ji in range(len(centre)):
        for kj in range(len(centre)):
            if centre[kj] != neighbour[ji]:
                continue
            image_of_k = [a + b for a, b in zip(shift[ji], shift[kj], strict=True)]
            if not (neighbour[kj] == centre[ji] and image_of_k == [0.0, 0.0, 0.0]):
                found.append((kj, ji))
    return found


def plain_features(model: DimeNetPlusPlus, s: Structure) -> Tensor:
    """Every triplet by itself, its basis from scipy, through the published layers."""
    neighbour, centre = s.edge_index
    vectors = edge_vectors(s)
    distances = vectors.norm(dim=1)
    pairs = torch.tensor(triplets(s)).reshape(-1, 2)
    kj, ji = pairs.T
    # i -> j -> k straight on is angle zero: both edges seen along the way that messages take
    cosines = ((-vectors[ji]) * (-vectors[kj])).sum(dim=1) / (distances[ji] * distances[kj])
    orders, radial_basis = SETTINGS["spherical_basis"], SETTINGS["radial_basis"]
    zeros = bessel_zeros(orders, radial_basis)
    x = (distances / CUTOFF).numpy()
    basis = torch.empty(len(pairs), orders, radial_basis, dtype=torch.float64)
    for order in range(orders):
        angular = np.sqrt((2 * order + 1) / (4 * np.pi)) * eval_legendre(order, cosines.numpy())
        for n, zero in enumerate(zeros[order]):
            norm = np.sqrt(0.5 * spherical_jn(order + 1, zero) ** 2)
            radial_part = spherical_jn(order, zero * x) / norm * model.sbf.envelope(torch.from_numpy(x)).numpy()
            basis[:, order, n] = torch.from_numpy(radial_part[kj.numpy()] * angular)

    radial, n_atoms = model.rbf(distances), s.num_nodes
    messages = model.emb(s.numbers, radial, centre, neighbour)
    total = model.output_blocks[0](messages, radial, centre, num_nodes=n_atoms)
    for block, output in zip(model.interaction_blocks, model.output_blocks[1:], strict=True):
        # the published block, of which ours inherits its layers
        published = super(type(block), block).forward
        messages = published(messages, radial, basis.flatten(1), kj, ji)
        total = total + output(messages, radial, centre, num_nodes=n_atoms)
    return total


@pytest.mark.parametrize(
    "case", ["triclinic", "left-handed", "rock salt", "one atom, fcc", "molecule", "batch", "one direction only"]
)
def test_matrices_are_the_sum_over_triplets(case: str, model: DimeNetPlusPlus, random_crystal) -> None:
    s = random_crystal(3, 5, unwrapped=True)
    if case == "left-handed":
        s = random_crystal(4, 4, left_handed=True)
    elif case == "rock salt":
        s = rock_salt()
    elif case == "one atom, fcc":
        s = crystal([13], [[0.3, 0.0, 0.1]], 2.0 * (1 - np.eye(3)))
        assert set(s.edge_index.flatten().tolist()) == {0}
    elif case == "molecule":
        s = crystal([8, 1, 1], [[0, 0, 0.1], [0.8, 0.5, 0], [-0.8, 0.6, 0]], np.zeros((3, 3)), periodic=False)
    elif case == "batch":
        s = collate([s, rock_salt(), random_crystal(2, 3, cutoff=1.0)])
    elif case == "one direction only":
        # a graph from elsewhere: some edges have lost their reverse
        kept = torch.rand(s.edge_index.shape[1], generator=torch.Generator().manual_seed(0)) < 0.6
        s.edge_index, s.edge_shift = s.edge_index[:, kept], s.edge_shift[kept]
    with torch.no_grad():
        assert_same(model(s, edge_vectors(s)).scalar, plain_features(model, s))


def test_reverse_edges_of_an_fcc_cell_by_brute_force() -> None:
    """One atom, its own neighbour 12 times: each edge has one reverse among them, at the opposite vector."""
    s = crystal([13], [[0.0, 0.0, 0.0]], 2.0 * (1 - np.eye(3)), cutoff=3.0)
    rows = [EdgeRows(s.edge_index[end], 1) for end in (0, 1)]
    reverse = reverse_pairs(s, *rows)
    vectors = edge_vectors(s)
    opposite = (vectors[:, None] + vectors[None]).norm(dim=2) < 1e-9
    assert torch.equal(reverse[0], opposite)
    assert reverse.sum() == len(vectors) == 12
    polynomials = legendre_of_pairs(vectors / vectors.norm(dim=1)[:, None], *rows, reverse, 5)[0]
    assert not polynomials[reverse[0]].any()
    cosines = (vectors @ vectors.T / 8.0).numpy()
    for order in range(5):
        expected = np.where(opposite, 0.0, eval_legendre(order, cosines))
        assert np.abs(polynomials[..., order].numpy() - expected).max() < 1e-14


def test_spherical_bessel_functions() -> None:
    orders, radial = 7, 6
    basis = SphericalBesselBasis(orders, radial, CUTOFF, 5)
    zeros = bessel_zeros(orders, radial)
    assert np.abs(spherical_jn(np.arange(orders)[:, None], zeros)).max() < 1e-14
    distances = torch.linspace(0.5, 4.2, 40, dtype=torch.float64)
    x = (distances / CUTOFF).numpy()[:, None, None]
    order = np.arange(orders)[:, None]
    norms = np.sqrt(2 * (2 * order + 1) / (4 * np.pi)) / np.abs(spherical_jn(order + 1, zeros))
    envelope = basis.envelope(torch.from_numpy(x)).numpy()
    expected = torch.from_numpy(norms * spherical_jn(order, zeros * x) * envelope)
    assert_same(basis(distances), expected)
    assert not basis(distances)[distances >= CUTOFF].any()
    # a network in float32 loses no more digits than rounding its input does
    single = basis.float()(distances.float())
    assert single.dtype == torch.float32
    assert_same(single.double(), basis(distances.float().double()), 1e-7)


# --- what must change nothing


def test_batch_is_single(model: DimeNetPlusPlus, random_crystal) -> None:
    parts = [random_crystal(1, 5), random_crystal(2, 3, cutoff=1.0), rock_salt(), random_crystal(3, 7)]
    energies, forces = energy_and_forces(model, collate(parts))
    singles = [energy_and_forces(model, part) for part in parts]
    assert_same(energies, torch.cat([energy for energy, _ in singles]))
    assert_same(forces, torch.cat([force for _, force in singles]))


def test_supercell_and_other_choice_of_cell(model: DimeNetPlusPlus, random_crystal) -> None:
    s = random_crystal(6, 3)
    energies, forces = energy_and_forces(model, s)
    cell = s.cell[0].numpy()
    positions = s.positions.numpy()
    doubled = crystal(s.numbers.repeat(2), np.vstack([positions, positions + cell[0]]), np.diag([2.0, 1.0, 1.0]) @ cell)
    other_cell = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]]) @ cell
    for other, times in ((doubled, 2), (crystal(s.numbers, positions, other_cell), 1)):
        again, forces_again = energy_and_forces(model, other)
        assert_same(again, energies.repeat(times))
        assert_same(forces_again, forces.repeat(times, 1))


@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_reflection(mirror: bool, model: DimeNetPlusPlus, random_crystal) -> None:
    s = random_crystal(7, 4)
    energies, forces = energy_and_forces(model, s)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn = turn if (np.linalg.det(turn) < 0) == mirror else -turn
    turned = crystal(s.numbers, s.positions.numpy() @ turn, s.cell[0].numpy() @ turn)
    again, forces_again = energy_and_forces(model, turned)
    assert_same(again, energies)
    assert_same(forces_again, forces @ torch.from_numpy(turn))


def test_permutation(model: DimeNetPlusPlus, random_crystal) -> None:
    s = random_crystal(8, 6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    energies, forces = energy_and_forces(model, s)
    again, forces_again = energy_and_forces(model, crystal(s.numbers[order], s.positions[order], s.cell[0]))
    assert_same(again, energies[order])
    assert_same(forces_again, forces[order])


# --- derivatives


@pytest.mark.parametrize("case", ["collinear", "triclinic"])
def test_forces_are_finite_differences(case: str, model: DimeNetPlusPlus, random_crystal) -> None:
    # moved along an axis, the atoms of a rock salt chain stay exactly collinear
    s = rock_salt() if case == "collinear" else random_crystal(9, 3)
    s.positions[0, 0] += 0.1
    _, forces = energy_and_forces(model, s)
    for atom, axis in ((0, 0), (1, 0), (0, 2)):
        energies = []
        for sign in (2, 1, -1, -2):
            moved = s.clone()
            moved.positions[atom, axis] += sign * STEP
            energies.append(float(energy_and_forces(model, moved)[0].sum()))
        far_plus, plus, minus, far_minus = energies
        slope = (8.0 * (plus - minus) - (far_plus - far_minus)) / (12.0 * STEP)
        assert -slope == pytest.approx(float(forces[atom, axis]), abs=DIFFERENCES * float(forces.abs().max()))


def test_ideal_rock_salt_has_no_forces(model: DimeNetPlusPlus) -> None:
    """Every chain along an axis is straight: angles of exactly 0 and 180 degrees."""
    _, forces = energy_and_forces(model, rock_salt())
    assert float(forces.abs().max()) < 1e-13
    _, moved = energy_and_forces(model, rock_salt(rattle=0.1))
    assert float(moved.abs().max()) > 1e-3


def test_second_derivatives() -> None:
    """By vectors, of a straight chain and one atom beside it, as in training on forces."""
    small = network(features=3, interactions=1, triplet_features=2, basis_features=2, output_features=3)
    s = crystal(
        [11, 17, 11, 8], [[0, 0, 0], [2.1, 0, 0], [4.0, 0, 0], [2.0, 2.2, 0.3]], np.zeros((3, 3)), periodic=False
    )
    vectors = edge_vectors(s).requires_grad_()

    def energy(vectors: Tensor) -> Tensor:
        return (small(s, vectors).scalar @ weights(small)).sum()

    assert torch.autograd.gradcheck(energy, (vectors,))
    assert torch.autograd.gradgradcheck(energy, (vectors,))


def test_an_edge_fades_smoothly_at_the_cutoff(model: DimeNetPlusPlus) -> None:
    """Energy, its first and its second derivative, of a fourth atom that comes into reach."""

    def energies(distance: Tensor) -> Tensor:
        values = []
        for x in distance:
            positions = torch.tensor([[0.0, 0, 0], [-1.9, 0.5, 0], [0, -2.2, 0.4], [0, 0, 0]], dtype=torch.float64)
            positions = positions + torch.tensor([[0.0], [0], [0], [1]]) * torch.stack([x, 0 * x, 0 * x])
            s = crystal([11, 17, 8, 17], positions.detach(), np.zeros((3, 3)), periodic=False)
            s.positions = positions
            values.append((model(s, edge_vectors(s)).scalar @ weights(model)).sum())
        return torch.stack(values)

    # the fourth atom leaves the reach of the first, and of nobody else
    alone = float(energies(torch.tensor([CUTOFF + 0.1], dtype=torch.float64)).detach())
    near = torch.tensor([CUTOFF - 0.3, CUTOFF - 2e-3, CUTOFF - 1e-3], dtype=torch.float64, requires_grad=True)
    values = energies(near)
    (slopes,) = torch.autograd.grad(values.sum(), near, create_graph=True)
    (curvatures,) = torch.autograd.grad(slopes.sum(), near)
    gaps = (values - alone).abs()
    for quantity, power in ((gaps, 3), (slopes.abs(), 2), (curvatures.abs(), 1)):
        inside, nearer, nearest = quantity.detach().tolist()
        assert nearer < 0.05 * inside
        # at least as fast as the envelope, (1 - x)^3; the functions under it may have zeros nearby
        assert nearer / nearest > 0.98 * 2.0**power


# --- in a potential


@pytest.fixture(scope="module")
def potential() -> Potential:
    """Short range alone, with a readout that is not zero."""
    config = make_config(
        None,
        {f"model.backbone.{name}": value for name, value in {"name": "dimenet++", **SETTINGS}.items()}
        | {"model.kernel.form": "none"},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_potential(config.model, [11, 17]).set_precision(torch.float64)
        torch.nn.init.normal_(model.short.readout.last.weight)
    model.info = ModelInfo(config.model_dump(mode="json"), ["Na", "Cl"])
    return model.eval().requires_grad_(False)


def test_stress_is_the_slope_by_strain(potential: Potential, random_crystal) -> None:
    s = random_crystal(12, 4, left_handed=True)
    stress = potential(s, stress=True)["stress"][0]
    direction = torch.tensor([[0.4, 0.7, -0.2], [0.7, -0.9, 0.3], [-0.2, 0.3, 0.5]], dtype=torch.float64)
    energies = []
    for sign in (2, 1, -1, -2):
        deformation = torch.eye(3, dtype=torch.float64) + sign * STEP * direction
        strained = crystal(s.numbers, s.positions @ deformation, s.cell[0] @ deformation)
        energies.append(float(potential(strained, forces=False)["energy"]))
    far_plus, plus, minus, far_minus = energies
    slope = (8.0 * (plus - minus) - (far_plus - far_minus)) / (12.0 * STEP) / float(torch.linalg.det(s.cell[0]).abs())
    scale = float(stress.abs().max())
    assert scale > 1e-4
    assert slope == pytest.approx(float((stress * direction).sum()), abs=DIFFERENCES * scale)


def test_model_file_and_calculator(potential: Potential, tmp_path: Path) -> None:
    """A loaded model is the same, also in its zeros of Bessel functions, which are not in the file."""
    s = rock_salt(rattle=0.1)
    expected = potential(s, stress=True)
    path = save(potential, tmp_path / "m.pt")
    again = load(path)(s, stress=True)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    atoms = Atoms(
        s.numbers.numpy(), s.positions.numpy(), cell=s.cell[0].numpy(), pbc=True, calculator=LRCalculator(path)
    )
    assert_same(torch.from_numpy(atoms.get_forces()), expected["forces"])


# --- edges of edges


def test_atoms_without_neighbours(model: DimeNetPlusPlus) -> None:
    lone = crystal([11], [[0.0, 0.0, 0.0]], 9.0 * np.eye(3))
    assert lone.edge_index.shape == (2, 0)
    energies, forces = energy_and_forces(model, lone)
    assert torch.isfinite(energies).all()
    assert not forces.any()
    # beside a crystal in a batch it feels nothing of it
    together, all_forces = energy_and_forces(model, collate([rock_salt(rattle=0.1), lone]))
    assert float(together[2]) == pytest.approx(float(energies[0]), rel=EXACT)
    assert not all_forces[2].any()


def test_all_elements_and_both_precisions(model: DimeNetPlusPlus) -> None:
    s = rock_salt(rattle=0.1)
    s.numbers = torch.tensor([1, 118])
    exact = model(s, edge_vectors(s)).scalar.detach()
    single = copy.deepcopy(model).float()(s, edge_vectors(s).float()).scalar.detach()
    assert single.dtype == torch.float32
    assert_same(single.double(), exact, 1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [(name, 0) for name in SETTINGS if name != "cutoff"] + [("spherical_basis", 1)]
)
def test_too_small_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"dimenet\+\+: {name} = {value} is too small; raise it to \d or more"):
        network(**{name: value})
