"""The equivariant backbone: e3nn's products, what symmetry leaves alone and turns, smoothness, derivatives, files."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpot.backbones import AtomFeatures, Equivariant
from lrpot.backbones.coupling import _products, _raising, coupling, name_of, product_matrix, spherical_harmonics
from lrpot.backbones.equivariant import Messages, _Activation, _Edges, bessel
from lrpot.build import build_potential
from lrpot.config import EquivariantConfig, ModelConfig
from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError, ModelFileError
from lrpot.model_file import ModelInfo, load, save
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, edge_vectors, make_structure
from lrpot.tensors import PolarizabilityReadout, _basis
from tests.unit.equivariance import CUTOFF, assert_near, rebuilt

ELEMENTS = (8, 11, 17)


def backbone(*, seed: int = 0, dtype: torch.dtype = torch.float64, **settings) -> Equivariant:
    settings = {"features": 4, "lmax": 2, "interactions": 3, "radial_hidden": 8, "tensors": True} | settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Equivariant(cutoff=CUTOFF, **settings).to(dtype)


def potential(kernel: str = "none", **settings) -> Potential:
    """A potential with a random readout; small, unless told otherwise."""
    settings = {
        "name": "equivariant",
        "features": 4,
        "interactions": 2,
        "radial_hidden": 8,
        "cutoff": CUTOFF,
        **settings,
    }
    config = ModelConfig.model_validate({"backbone": settings, "kernel": {"form": kernel, "tolerance": 1e-5}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_potential(config, ELEMENTS)
        torch.nn.init.normal_(model.short.readout.last.weight)
    if model.long is not None:
        model.long.charges.set_values({8: -0.4, 11: 1.0, 17: -0.6})
    model.info = ModelInfo(config={"model": config.model_dump(mode="json")}, elements=["O", "Na", "Cl"])
    return model.set_precision(torch.float64).eval()


def rotation(seed: int, *, mirror: bool) -> Tensor:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return torch.from_numpy(-q if (np.linalg.det(q) < 0) != mirror else q)


def turned_harmonics(e3nn, irrep, turn: Tensor) -> Tensor:
    """D with x' = x @ D when positions' = positions @ turn, for the components x of an irrep.

    By what harmonics do under a rotation; e3nn's own matrices are good to 1e-7 only.
    """
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)).double())
    before, after = (e3nn.spherical_harmonics(irrep.l, d, normalize=True) for d in (directions, directions @ turn))
    matrix = torch.linalg.lstsq(before, after).solution
    mirrored = bool(torch.linalg.det(turn) < 0)
    return matrix * (irrep.p * (-1) ** irrep.l if mirrored else 1)


def features(network: Equivariant, s: Structure) -> AtomFeatures:
    with torch.no_grad():
        return network(s, edge_vectors(s).to(network.embedding.weight.dtype))


@pytest.fixture(scope="module")
def crystal(random_crystal) -> Structure:
    return random_crystal(4, 7, elements=ELEMENTS)


@pytest.fixture(scope="module")
def e3nn():
    import e3nn.o3

    return e3nn.o3


@pytest.fixture
def float64_is_default() -> Iterator[None]:
    """e3nn makes the constants of its products in torch's default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# constants and products against e3nn


def test_spherical_harmonics_are_those_of_e3nn(e3nn) -> None:
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double())
    theirs = e3nn.spherical_harmonics(list(range(5)), directions, normalize=True, normalization="component")
    assert_near(spherical_harmonics(directions, 4), theirs, 1e-13)


@pytest.mark.parametrize(("lmax", "interactions"), [(0, 2), (1, 3), (2, 3), (3, 2)])
@pytest.mark.usefixtures("float64_is_default")
def test_messages_are_the_tensor_product_of_e3nn(lmax: int, interactions: int, e3nn, crystal: Structure) -> None:
    network = backbone(lmax=lmax, interactions=interactions)
    channels, messages = network.features, network.steps[-1].messages
    assert isinstance(messages, Messages)
    generator = torch.Generator().manual_seed(0)
    blocks = {
        irrep: torch.randn(7, 2 * irrep[0] + 1, channels, generator=generator).double() for irrep in messages.paths
    }
    weights = torch.randn(crystal.num_edges, messages.n_paths, channels, generator=generator).double()
    vectors = edge_vectors(crystal)
    directions = vectors / vectors.norm(dim=1, keepdim=True)
    ours = messages(blocks, _Edges(crystal.edge_index, directions, lmax), weights)

    paths = [(i, *path) for i, irrep in enumerate(messages.paths) for path in messages.paths[irrep]]
    product = e3nn.TensorProduct(
        e3nn.Irreps([(channels, irrep) for irrep in messages.paths]),
        e3nn.Irreps.spherical_harmonics(lmax),
        e3nn.Irreps([(channels, out) for _, _, out in paths]),
        [(i, harmonic, place, "uvu", True) for place, (i, harmonic, _) in enumerate(paths)],
        irrep_normalization="component",
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    )
    neighbour, centre = crystal.edge_index
    flat = torch.cat([block.mT.flatten(1) for block in blocks.values()], dim=1)[neighbour]
    harmonics = e3nn.spherical_harmonics(list(range(lmax + 1)), directions, True, "component")
    theirs = product(flat, harmonics, weights.flatten(1))
    summed = theirs.new_zeros(7, theirs.shape[1]).index_add(0, centre, theirs)
    places = product.irreps_out.slices()
    assert {name_of(out) for _, _, out in paths} == {name_of(irrep) for irrep in ours}
    for irrep, block in ours.items():
        arriving = [summed[:, places[n]].unflatten(1, (channels, -1)).mT for n, p in enumerate(paths) if p[2] == irrep]
        assert_near(block, torch.stack(arriving, dim=1), 1e-12)


def test_product_matrix_is_the_plain_sum() -> None:
    directions = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double())
    harmonics = spherical_harmonics(directions, 2)
    matrix = product_matrix(harmonics, 2, ((2, 0), (1, 2)))
    plain = [
        torch.einsum("abc,eb->eca", coupling(2, order, out), harmonics[:, order**2 : (order + 1) ** 2])
        for order, out in ((2, 0), (1, 2))
    ]
    assert_near(matrix, torch.cat(plain, dim=1), 1e-14)


def test_bessel_functions_are_orthonormal_and_vanish_at_the_cutoff() -> None:
    """Mean of b_m b_n over the sphere, by the midpoint rule."""
    n = 4000
    distances = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) * (CUTOFF / n)
    values = bessel(distances, 6, CUTOFF) * distances
    mean = values.T @ values * (CUTOFF / n) / (CUTOFF**3 / 3)
    torch.testing.assert_close(mean, torch.eye(6, dtype=torch.float64), atol=1e-5, rtol=0.0)
    assert float(bessel(torch.tensor([[CUTOFF]], dtype=torch.float64), 6, CUTOFF).abs().max()) < 1e-14


def test_activation_keeps_the_second_moment() -> None:
    """Of a normal distribution, by the midpoint rule."""
    x = (torch.arange(4000, dtype=torch.float64) + 0.5) / 200.0 - 10.0
    density = torch.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi) / 200.0
    assert float((density * _Activation()(x) ** 2).sum()) == pytest.approx(1.0, abs=1e-6)


# symmetry


def test_irreps_are_all_that_can_be_reached() -> None:
    assert backbone(lmax=0).irreps_out == "4x0e"
    assert backbone(lmax=1, interactions=1).irreps_out == "4x0e+4x1o"
    assert backbone(lmax=1, interactions=2).irreps_out == "4x0e+4x1o+4x1e"
    assert backbone(lmax=1, interactions=3).irreps_out == "4x0e+4x0o+4x1o+4x1e"
    assert backbone(lmax=2, interactions=3).irreps_out == "4x0e+4x0o+4x1o+4x1e+4x2e+4x2o"


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("lmax", [0, 1, 2, 3])
def test_rotation_and_reflection(lmax: int, mirror: bool, e3nn, crystal: Structure) -> None:
    network = backbone(lmax=lmax)
    turn = rotation(3, mirror=mirror)
    one = features(network, crystal)
    other = features(network, rebuilt(crystal, positions=crystal.positions @ turn, cell=crystal.cell[0] @ turn))
    assert_near(other.scalar, one.scalar)
    assert one.irreps is not None
    assert other.irreps is not None
    irreps = e3nn.Irreps(network.irreps_out)
    assert one.irreps.shape == (7, irreps.dim)
    for irrep, place in zip(irreps, irreps.slices(), strict=True):  # each must be there, and be right
        a, b = (found.irreps[:, place].unflatten(1, (network.features, -1)) for found in (one, other))
        assert_near(b, a @ turned_harmonics(e3nn, irrep.ir, turn))
    if lmax == 0:
        assert one.vector is None
    else:
        assert one.vector is not None
        assert other.vector is not None
        assert_near(other.vector, torch.einsum("ab,naf->nbf", turn, one.vector))


def test_scalars_and_vectors_are_parts_of_the_irreps(e3nn, crystal: Structure) -> None:
    network = backbone()
    found = features(network, crystal)
    places = dict(zip(map(str, e3nn.Irreps(network.irreps_out)), e3nn.Irreps(network.irreps_out).slices(), strict=True))
    assert found.irreps is not None
    assert found.vector is not None
    assert torch.equal(found.irreps[:, places["4x0e"]], found.scalar)
    assert torch.equal(found.irreps[:, places["4x1o"]].unflatten(1, (4, 3)).mT, found.vector)


def test_vectors_are_cartesian() -> None:
    """Two atoms of different elements on a slanted line: all vectors lie along it."""
    axis = torch.tensor([0.5, -1.0, 1.7], dtype=torch.float64)
    s = make_structure([11, 17], torch.stack([axis * 0, axis]), np.zeros((3, 3)), [False] * 3)
    vector = features(backbone(), add_edges(s, CUTOFF)).vector
    assert vector is not None
    along = torch.einsum("a,naf->nf", axis, vector) / axis.square().sum()
    assert_near(axis[None, :, None] * along[:, None], vector)


def test_an_energy_needs_only_what_the_scalars_see(crystal: Structure) -> None:
    """Without tensors, the features that cannot reach the last scalars are not computed; they change nothing."""
    full, lean = backbone(tensors=True), backbone(tensors=False)
    kept = lean.state_dict()
    assert len(kept) < len(full.state_dict())
    assert lean.irreps_out == "4x0e"
    one = features(lean, crystal)
    assert one.vector is None
    assert one.irreps is None
    # the scalars of the second step see natural parity only, whatever else is there
    natural = {(order, (-1) ** order) for order in range(3)}
    assert set(lean.steps[-1].messages.paths) <= natural < set(full.steps[-1].messages.paths)


def test_permutation_translation_and_wrapping(crystal: Structure) -> None:
    network = backbone()
    one = features(network, crystal)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shifted = crystal.positions + torch.tensor([4.0, -7.0, 0.3]) + 2.0 * crystal.cell[0, 1] * (order % 2)[:, None]
    other = features(network, rebuilt(crystal, numbers=crystal.numbers[order], positions=shifted[order]))
    for a, b in zip(one, other, strict=True):
        assert_near(b, a[order])


def test_batch_is_single(random_crystal) -> None:
    structures = [
        random_crystal(1, 5, elements=ELEMENTS),
        random_crystal(2, 3, elements=ELEMENTS, cutoff=1.0),
        random_crystal(3, 4, elements=ELEMENTS, left_handed=True),
    ]
    network, batch = backbone(), collate(structures)
    assert structures[1].num_edges == 0
    together = features(network, batch)
    alone = [features(network, s) for s in structures]
    for field in AtomFeatures._fields:
        assert_near(getattr(together, field), torch.cat([getattr(one, field) for one in alone]), 1e-12)


def test_supercell(crystal: Structure) -> None:
    model = potential(lmax=2)
    images = [crystal.positions + a * crystal.cell[0, 0] + b * crystal.cell[0, 2] for a in (0, 1) for b in (0, 1)]
    cell = crystal.cell[0] * torch.tensor([[2.0], [1.0], [2.0]])
    large = rebuilt(crystal, numbers=crystal.numbers.repeat(4), positions=torch.cat(images), cell=cell)
    one, four = model(crystal, stress=True), model(large, stress=True)
    assert_near(four["energy"], 4 * one["energy"])
    assert_near(four["forces"], one["forces"].repeat(4, 1))
    assert_near(four["stress"], one["stress"])


@pytest.mark.parametrize("lmax", [0, 1, 2])
def test_one_atom_cell_is_its_supercell(lmax: int) -> None:
    """Every neighbour is an image of the atom itself."""
    cell = torch.tensor([[2.9, 0.0, 0.2], [0.4, 3.1, 0.0], [0.0, -0.5, 2.7]], dtype=torch.float64)
    one = add_edges(make_structure([11], [[0.1, 0.2, 0.3]], cell, [True] * 3), CUTOFF)
    assert one.num_edges > 6
    large = rebuilt(
        one,
        numbers=torch.tensor([11, 11]),
        positions=torch.cat([one.positions, one.positions + cell[1]]),
        cell=cell * torch.tensor([[1.0], [2.0], [1.0]]),
    )
    network = backbone(lmax=lmax)
    assert_near(features(network, large).scalar, features(network, one).scalar.repeat(2, 1))


def test_atoms_without_neighbours() -> None:
    model = potential()
    alone = add_edges(make_structure([11], [[0.0, 0.0, 0.0]], np.eye(3) * 20.0, [True] * 3), CUTOFF)
    assert alone.num_edges == 0
    output = model(alone, stress=True)
    assert torch.isfinite(output["energy"]).all()
    assert not output["forces"].any()
    assert not output["stress"].any()
    found = features(backbone(), alone)
    assert found.vector is not None
    assert found.scalar.any()
    assert not found.vector.any()


# derivatives and smoothness


def test_forces_and_stress_are_finite_differences(crystal: Structure) -> None:
    model = potential(lmax=2, interactions=2)
    output = model(crystal, stress=True)
    step, rng = 1e-5, np.random.default_rng(0)
    scale = float(output["forces"].abs().max())
    assert scale > 1e-3

    def energy(positions: Tensor, cell: Tensor) -> float:
        return float(model(rebuilt(crystal, positions=positions, cell=cell))["energy"])

    direction = torch.from_numpy(rng.normal(size=(7, 3)))
    slope = sum(s * energy(crystal.positions + s * step * direction, crystal.cell[0]) for s in (1, -1)) / (2 * step)
    assert slope == pytest.approx(-float((output["forces"] * direction).sum()), abs=1e-6 * scale)
    strain = torch.from_numpy(rng.normal(size=(3, 3)))
    strain = strain + strain.T
    turned = [torch.eye(3, dtype=torch.float64) + s * step * strain for s in (1, -1)]
    ends = [energy(crystal.positions @ d, crystal.cell[0] @ d) for d in turned]
    work = float((output["stress"][0] * strain).sum() * torch.linalg.det(crystal.cell[0]).abs())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(work, abs=1e-6 * max(abs(work), scale))


def test_second_derivatives(random_crystal) -> None:
    network = backbone(features=2, lmax=1, interactions=2, radial_hidden=3, radial_basis=3)
    s = random_crystal(2, 2, elements=ELEMENTS, cutoff=3.4)
    vectors = edge_vectors(s)
    assert 2 <= len(vectors) <= 12

    def function(vectors: Tensor) -> tuple[Tensor, ...]:
        found = network(s, vectors)
        return found.scalar, found.irreps

    inputs = (vectors.requires_grad_(),)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_training_on_forces_reaches_every_weight(crystal: Structure) -> None:
    model = potential(lmax=2, interactions=3)
    output = model(crystal, create_graph=True)
    output["forces"].square().sum().backward()
    for name, weight in model.short.backbone.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0.0, name


def test_an_edge_fades_out_at_the_cutoff() -> None:
    """A third atom leaves two others: energy, force and curvature go to what they are without it."""
    model = potential(lmax=2)

    def energy(distance: Tensor) -> Tensor:
        positions = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
        axis = torch.tensor([-0.6, 0.0, -0.8], dtype=torch.float64)
        s = make_structure([11, 17, 8], positions, np.zeros((3, 3)), [False] * 3)
        s.edge_index = torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2]])
        s.edge_shift = torch.zeros(4, 3, dtype=torch.float64)
        s.positions = torch.cat([positions[:2], axis[None] * distance])
        return model._energies(s, frozenset({"short"}), first_derivatives=False)["energy"].sum()

    def derivatives(distance: float) -> list[float]:
        x = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
        value = energy(x)
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
        return [float(x.detach()) for x in (value, first, second)]

    beyond, typical = derivatives(CUTOFF + 1.0), derivatives(0.6 * CUTOFF)
    assert beyond[1:] == [0.0, 0.0]
    gap = 1e-5  # relative: the taper leaves gap^3, gap^2 and gap of value, slope and curvature
    close = derivatives(CUTOFF * (1 - gap))
    for order in range(3):
        scale = abs(typical[order] - beyond[order])
        assert scale > 1e-4
        assert abs(close[order] - beyond[order]) < 1e3 * gap ** (3 - order) * scale


# precision, files, copies


def test_float32_is_float64_rounded(crystal: Structure) -> None:
    double = backbone()
    single = copy.deepcopy(double).float()
    for a, b in zip(features(single, crystal), features(double, crystal), strict=True):
        assert a.dtype == torch.float32
        assert_near(a.double(), b, 1e-5)


def test_constants_stay_exact_through_single_precision(crystal: Structure) -> None:
    """A model that was float32 on its way here is as symmetric in float64 as any."""
    network = backbone().float().double()
    turn = rotation(5, mirror=True)
    turned = rebuilt(crystal, positions=crystal.positions @ turn, cell=crystal.cell[0] @ turn)
    assert_near(features(network, turned).scalar, features(network, crystal).scalar)


def test_copies_and_pickles(crystal: Structure) -> None:
    network = backbone()
    expected = features(network, crystal)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for a, b in zip(features(other, crystal), expected, strict=True):
            assert torch.equal(a, b)
    assert all(isinstance(value, Tensor) for value in network.state_dict().values())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("kernel", ["none", "coulomb"])
def test_model_file(kernel: str, tmp_path: Path, crystal: Structure) -> None:
    model = potential(kernel, lmax=2, tensors=True)
    again = load(save(model, tmp_path / "m.pt"))
    one, other = model(crystal, stress=True), again(crystal, stress=True)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_model_file_loads_first_in_a_process(tmp_path: Path) -> None:
    """The meta device, on which shapes are checked, makes no constants, and e3nn loads only when they are needed."""
    path = save(potential(lmax=2), tmp_path / "m.pt")
    code = (
        "import sys, torch\n"
        "from lrpot.model_file import load\n"
        "from lrpot.data.neighbours import add_edges\n"
        "from lrpot.structure import make_structure\n"
        f"model = load({str(path)!r})\n"
        "print('e3nn' in sys.modules)\n"
        f"s = make_structure([11, 17], [[0.0] * 3, [2.0, 0.5, 0.1]], 9.0 * torch.eye(3), [True] * 3)\n"
        f"print(bool(model(add_edges(s, {CUTOFF}))['forces'].isfinite().all()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\nTrue\n"


def test_a_model_file_of_another_width_is_refused(tmp_path: Path) -> None:
    model = potential()
    assert isinstance(model.info, ModelInfo)
    model.info.config["model"]["backbone"]["features"] = 5
    with pytest.raises(ModelFileError, match="do not fit each other"):
        load(save(model, tmp_path / "m.pt"))


def test_construction_is_quick() -> None:
    start = time.perf_counter()
    backbone(features=32, lmax=4, interactions=3)
    assert time.perf_counter() - start < 2.0


def test_settings_are_those_of_the_configuration() -> None:
    settings = EquivariantConfig().model_dump(exclude={"name"})
    defaults = dict(zip(Equivariant.__init__.__code__.co_varnames[1:], Equivariant.__init__.__defaults__, strict=False))
    assert settings == defaults


@pytest.mark.parametrize(
    "setting", [{"features": 0}, {"interactions": 0}, {"radial_basis": 0}, {"radial_hidden": 0}, {"lmax": -1}]
)
def test_values_out_of_range(setting: dict[str, int]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"equivariant: {name} is too small; raise it"):
        Equivariant(**setting)


# --- inference mode


def test_a_call_in_inference_mode_spoils_no_later_gradient() -> None:
    """The first call of a process makes the constants of the rotation group, for all that follow."""
    for kept in (coupling, _raising, _products, _basis):
        kept.cache_clear()
    atoms = make_structure([11, 17, 11], [[0, 0, 0], [2.5, 0, 0], [0.4, 2.6, 0.3]], 6.0 * np.eye(3), [True] * 3)
    s = add_edges(atoms, CUTOFF)
    model = potential()
    readout = PolarizabilityReadout(backbone().irreps_out).double()
    with torch.inference_mode():
        energy = model(s, forces=False)["energy"]
        readout(s, backbone()(s, edge_vectors(s)))
    found = model(s)
    assert torch.equal(found["energy"], energy)
    assert float(found["forces"].abs().max()) > 0.0
    tensors = readout(s, backbone()(s, edge_vectors(s)))
    assert all(g is not None for g in torch.autograd.grad(tensors.sum(), list(readout.parameters()), allow_unused=True))


def test_derivatives_in_inference_mode_are_refused() -> None:
    s = add_edges(make_structure([11, 17], [[0, 0, 0], [2.5, 0, 0]], 6.0 * np.eye(3), [True] * 3), CUTOFF)
    with (
        torch.inference_mode(),
        pytest.raises(ConfigError, match=r"inference_mode\(\) does not allow; use torch.no_grad"),
    ):
        potential()(s)
