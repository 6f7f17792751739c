"""The potential: its parts, derivatives against differences, batches, periodicity, precision, second derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError, StructureError
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, make_structure
from lrpot.units import COULOMB_CONSTANT

DERIVATIVE_TOLERANCE = 1e-6  # eV/A, eV/A^3: forces and stress against differences
# A, and strain. Five points: the error is of order STEP^4, or STEP^2 where a wave vector passes an end of the envelope,
# whose third derivative jumps.
STEP = 1e-4
BATCH_TOLERANCE = 1e-10  # eV, eV/A, eV/A^3
FLOAT32_TOLERANCE = 1e-4  # relative to the largest number
# Relative: a table of the FCN to TABLE_ERROR = 1e-12 stands for the kernel while its weights are frozen. Stress takes
# the slope of the table, whose error is that of the value over the distance of two knots, some 1/100 A.
FROZEN_TOLERANCE = {"energy": 1e-11, "energy_long": 1e-11, "forces": 1e-11, "stress": 1e-9}
COULOMB_TOLERANCE = 1e-5  # relative: the tapers leave out (1e-7)^0.81 = 2e-6 of the Coulomb energy
PARAMETER_TOLERANCE = 1e-6  # relative, of a loss gradient against differences
KINDS = ["coulomb", "no-complement", "free", "none"]
# every kind of long range, with both neutralities, and none
VARIANTS = [(kind, neutrality) for kind in KINDS[:3] for neutrality in ("background", "shift")] + [
    ("none", "background")
]
POINTS = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # first derivative, error of order h^4


def moved(s: Structure, *, positions: Tensor | None = None, cell: Tensor | None = None) -> Structure:
    """The crystal at other positions or in another cell, with edges of its own."""
    positions = s.positions if positions is None else positions
    cell = s.cell[0] if cell is None else cell
    charge = float(s.total_charge[0])
    return add_edges(make_structure(s.numbers, positions, cell, s.pbc[0], total_charge=charge), 4.0)


def energies(model: Potential, structures: Sequence[Structure]) -> Tensor:
    return model(collate(structures), forces=False)["energy"].detach()


def difference_forces(model: Potential, s: Structure) -> Tensor:
    """(N, 3), minus the slope of the energy by five points."""
    displaced, weights = [], []
    for atom in range(s.num_nodes):
        for axis in range(3):
            for point in POINTS:
                positions = s.positions.clone()
                positions[atom, axis] += point * STEP
                displaced.append(moved(s, positions=positions))
    weights = torch.tensor(list(POINTS.values()), dtype=torch.float64) / STEP
    return -(energies(model, displaced).reshape(s.num_nodes, 3, 4) @ weights)


def difference_stress(model: Potential, s: Structure) -> Tensor:
    """(3, 3), the slope of the energy by each of the nine components of a deformation, over the volume."""
    strained = []
    for row in range(3):
        for column in range(3):
            for point in POINTS:
                deformation = torch.eye(3, dtype=torch.float64)
                deformation[row, column] += point * STEP
                strained.append(moved(s, positions=s.positions @ deformation, cell=s.cell[0] @ deformation))
    weights = torch.tensor(list(POINTS.values()), dtype=torch.float64) / STEP
    volume = torch.linalg.det(s.cell[0]).abs()
    return energies(model, strained).reshape(3, 3, 4) @ weights / volume


def largest(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def charged(random_crystal) -> Structure:
    """Seven atoms of two charges: charged, left-handed, unwrapped; 0.3 e of it is asked for."""
    return random_crystal(21, 7, left_handed=True, unwrapped=True, total_charge=0.3)


# --- derivatives against differences


@pytest.mark.parametrize(("kind", "neutrality"), VARIANTS)
def test_forces_are_the_slope_of_the_energy(kind: str, neutrality: str, random_crystal, make_potential) -> None:
    model, s = make_potential(kind, neutrality=neutrality), charged(random_crystal)
    forces = model(s)["forces"]
    assert float(forces.abs().max()) > 0.1
    assert largest(forces, difference_forces(model, s)) < DERIVATIVE_TOLERANCE
    assert float(forces.sum(dim=0).abs().max()) < 1e-10


@pytest.mark.parametrize(("kind", "neutrality"), VARIANTS)
def test_stress_is_the_slope_by_strain(kind: str, neutrality: str, random_crystal, make_potential) -> None:
    model, s = make_potential(kind, neutrality=neutrality), charged(random_crystal)
    stress = model(s, stress=True)["stress"]
    assert stress.shape == (1, 3, 3)
    assert float(stress.abs().max()) > 1e-3
    assert largest(stress, stress.mT) < 1e-15
    assert largest(stress[0], difference_stress(model, s)) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("part", ["short", "long"])
def test_derivatives_of_one_part(part: str, random_crystal, make_potential) -> None:
    whole, s = make_potential("coulomb"), charged(random_crystal)
    alone = Potential(whole.short, whole.long if part == "long" else None, whole.elements)
    if part == "long":
        with torch.no_grad():
            alone.short.readout.last.weight.zero_()
            alone.short.readout.last.bias.zero_()
    output = whole(s, stress=True, parts={part})
    assert largest(output["forces"], difference_forces(alone, s)) < DERIVATIVE_TOLERANCE
    assert largest(output["stress"][0], difference_stress(alone, s)) < DERIVATIVE_TOLERANCE


def test_derivatives_do_not_depend_on_what_else_is_asked_for(random_crystal, make_potential) -> None:
    model, s = make_potential("coulomb"), charged(random_crystal)
    everything = model(s, stress=True)
    assert torch.equal(model(s)["forces"], everything["forces"])
    assert largest(model(s, forces=False, stress=True)["stress"], everything["stress"]) < 1e-15
    plain = model(s, forces=False)
    assert plain.keys() == {"energy", "energy_short", "energy_long", "charges"}
    assert torch.equal(plain["energy"], everything["energy"])
    with torch.no_grad():
        assert torch.equal(model(s)["forces"], everything["forces"])


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_give_the_same_derivatives(kind: str, random_crystal, make_potential) -> None:
    """As calculators and predict use it: a table then stands for the kernel, and is kept from call to call.

    The table's error, relative to the kernel's largest value, is 1e-12, so equality to rounding is not to be had.
    """
    model, s = make_potential(kind), charged(random_crystal)
    expected = model(s, stress=True)
    model.requires_grad_(False)
    for stress in (False, True, False, True):
        output = model(s, stress=stress)
        for name, value in output.items():
            tolerance = 1e-13 if kind == "none" else FROZEN_TOLERANCE.get(name, 1e-13)
            assert largest(value, expected[name]) <= tolerance * expected[name].abs().max().item(), name


# --- parts


@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_short_plus_long(kind: str, random_crystal, make_potential) -> None:
    model, s = make_potential(kind), charged(random_crystal)
    whole = model(s)
    assert torch.equal(whole["energy"], whole["energy_short"] + whole["energy_long"])
    offset, short, long = (model(s, parts=[part]) for part in ("offset", "short", "long"))
    assert largest(offset["energy"] + short["energy"], whole["energy_short"]) < 1e-13
    assert torch.equal(long["energy"], whole["energy_long"])
    assert offset["energy"].item() == pytest.approx(model.short.offset[s.numbers].sum().item(), abs=1e-13)
    assert short["energy"].abs().item() > 0.1
    assert not offset["energy_long"].any()
    assert not short["energy_long"].any()
    assert not long["energy_short"].any()
    assert not offset["forces"].any()
    assert largest(short["forces"] + long["forces"], whole["forces"]) < 1e-13
    assert ("charges" in whole) == ("charges" in long) == (kind != "none")
    assert "charges" not in short
    if kind == "none":
        assert not long["energy"].any()
        assert not long["forces"].any()
    else:
        assert whole["energy_long"].abs().item() > 1.0
        assert whole["charges"].shape == (7, 1)


def test_a_part_that_there_is_not(random_crystal, make_potential) -> None:
    with pytest.raises(ConfigError, match="parts lnog: no part of a model; there are long, offset, short"):
        make_potential("none")(charged(random_crystal), parts=["short", "lnog"])


def test_short_range_is_offset_plus_scaled_readout(random_crystal, make_potential) -> None:
    model, s = make_potential("none"), random_crystal(3, 6)
    energy = model(s, forces=False)["energy"].detach()
    offsets = model.short.offset[s.numbers].sum()
    assert offsets.abs().item() > 0.1
    model.short.scale.mul_(2.0)
    assert largest(model(s, forces=False)["energy"].detach() - offsets, 2.0 * (energy - offsets)) < 1e-12


def test_output_is_float64_and_cut_off_from_the_weights(random_crystal, make_potential) -> None:
    output = make_potential("coulomb", dtype=torch.float32)(random_crystal(0, 5), stress=True)
    assert {value.dtype for value in output.values()} == {torch.float64}
    assert not any(value.requires_grad for value in output.values())


# --- batches


@pytest.mark.parametrize(("kind", "neutrality"), VARIANTS)
def test_batch_equals_single(kind: str, neutrality: str, random_crystal, make_potential) -> None:
    model = make_potential(kind, neutrality=neutrality, elements=(8, 11, 17))
    structures = [
        random_crystal(0, 5),
        random_crystal(1, 1, left_handed=True),
        random_crystal(2, 12, elements=(8, 11, 17), unwrapped=True),
        random_crystal(3, 7, total_charge=-0.4),
        random_crystal(4, 2),
    ]
    together = model(collate(structures), stress=True)
    alone = [model(s, stress=True) for s in structures]
    for name, value in together.items():
        separate = torch.cat([output[name] for output in alone])
        assert value.shape == separate.shape
        assert largest(value, separate) < BATCH_TOLERANCE, name
    model.set_precision(torch.float32, long_range=torch.float32)
    together = model(collate(structures), stress=True)
    alone = [model(s, stress=True) for s in structures]
    for name, value in together.items():
        separate = torch.cat([output[name] for output in alone])
        assert largest(value, separate) < FLOAT32_TOLERANCE * max(float(separate.abs().max()), 1.0), name


@pytest.mark.parametrize("single", [True, False])
def test_input_is_left_as_it_is(single: bool, random_crystal, make_potential) -> None:
    batch = random_crystal(0, 5, unwrapped=True)
    batch = batch if single else collate([batch, random_crystal(1, 3)])
    before = {name: value.clone() for name, value in batch.to_dict().items() if isinstance(value, Tensor)}
    make_potential("coulomb")(batch, stress=True)
    after = {name: value for name, value in batch.to_dict().items() if isinstance(value, Tensor)}
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert not after[name].requires_grad


# --- atoms without neighbours, periodicity


@pytest.mark.parametrize("pbc", [False, True])
def test_an_atom_without_neighbours(pbc: bool, make_potential) -> None:
    model = make_potential("none")
    s = add_edges(make_structure([11], [[0.1, 0.2, 0.3]], 20.0 * torch.eye(3), [pbc] * 3), 4.0)
    assert s.edge_index.shape == (2, 0)
    output = model(s, stress=pbc)
    assert torch.isfinite(output["energy"]).all()
    assert torch.equal(output["forces"], torch.zeros(1, 3, dtype=torch.float64))
    # far from everything it has the same energy in company
    numbers, positions = [11, 17, 17], [[0.1, 0.2, 0.3], [10.0, 10, 10], [12.0, 10, 10]]
    apart = add_edges(make_structure(numbers, positions, 20.0 * torch.eye(3), [False] * 3), 4.0)
    pair = add_edges(make_structure(numbers[1:], positions[1:], torch.zeros(3, 3), [False] * 3), 4.0)
    total = model(apart)["energy"]
    assert largest(total, output["energy"] + model(pair)["energy"]) < 1e-12
    if pbc:
        assert not output["stress"].any()


def test_a_lonely_ion_with_long_range_is_not_moved(make_potential) -> None:
    s = add_edges(make_structure([11], [[0.1, 0.2, 0.3]], 9.0 * torch.eye(3), [True] * 3), 4.0)
    output = make_potential("coulomb")(s, stress=True)
    assert float(output["forces"].abs().max()) < 1e-12
    assert output["energy_long"].abs().item() > 0.1
    assert torch.isfinite(output["stress"]).all()


def with_pbc(s: Structure, pbc: Sequence[bool], *, positions: Tensor | None = None, cell=None) -> Structure:
    positions = s.positions if positions is None else positions
    cell = s.cell[0] if cell is None else cell
    return add_edges(make_structure(s.numbers, positions, cell, pbc, total_charge=float(s.total_charge[0])), 4.0)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_long_range_refuses_a_chain(kind: str, axis: int, random_crystal, make_potential) -> None:
    good = random_crystal(0, 5)
    pbc = [n == axis for n in range(3)]
    bad = with_pbc(good, pbc)
    model = make_potential(kind)
    words = rf"pbc = \[{pbc[0]}, {pbc[1]}, {pbc[2]}\]: a chain, periodic in one direction only, is not supported"
    with pytest.raises(StructureError, match=words):
        model(collate([good, bad, good]))
    # the short-range part alone can treat it
    assert torch.isfinite(model(bad, parts={"short"})["energy"]).all()


SLABS = [[False, True, True], [True, False, True], [True, True, False]]


OPEN = list(zip(VARIANTS, [SLABS[0], [False] * 3, SLABS[1], SLABS[2], [False] * 3, SLABS[0]], strict=False))


@pytest.mark.parametrize(("variant", "pbc"), OPEN, ids=str)
def test_forces_of_slabs_and_molecules_are_slopes(
    variant: tuple[str, str], pbc: list[bool], random_crystal, make_potential
) -> None:
    model = make_potential(variant[0], neutrality=variant[1]).requires_grad_(False)
    s = with_pbc(random_crystal(22, 3, left_handed=True, total_charge=0.3), pbc)
    output = model(s)
    assert output["energy_long"].abs().item() > 1.0
    assert float(model(s, parts=["long"])["forces"].abs().max()) > 0.1
    assert largest(output["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE
    assert float(output["forces"].sum(dim=0).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("pbc", [*SLABS, [False] * 3, [True] * 3], ids=str)
def test_vectors_that_do_not_repeat_make_no_difference(
    kind: str, pbc: list[bool], random_crystal, make_potential
) -> None:
    """Nothing is treated as if it were periodic: a crystal that is compared in the same way differs."""
    model, whole = make_potential(kind), random_crystal(21, 6)
    free = [not flag for flag in pbc] if not all(pbc) else [True] * 3
    outputs = []
    for scale in (1.0, 1.3, 4.0, 0.0) if not all(pbc) else (1.0, 1.3):
        cell = whole.cell[0].clone()
        cell[free] *= scale
        outputs.append(model(with_pbc(whole, pbc, cell=cell), parts=["long"]))
    for other in outputs[1:]:
        apart = largest(other["energy"], outputs[0]["energy"]), largest(other["forces"], outputs[0]["forces"])
        assert (max(apart) < 1e-9) == (not all(pbc))


def test_two_ions_alone_have_their_coulomb_energy(make_potential) -> None:
    model = make_potential("coulomb")
    for parameter in model.long.reciprocal.kernel.fcn.parameters():
        parameter.data.zero_()
    energies = []
    for distance in (2.3, 3.9, 4.1, 50.0):
        s = make_structure([11, 17], [[0.1, 0.2, 0.3], [0.1, 0.2 + distance, 0.3]], torch.zeros(3, 3), [False] * 3)
        output = model(add_edges(s, 4.0), parts=["long"])
        q = output["charges"][:, 0]
        expected = COULOMB_CONSTANT * (q[0] * q[1]).item() / distance
        assert abs(expected) > 0.1
        assert output["energy"].item() == pytest.approx(expected, rel=COULOMB_TOLERANCE)
        pull = -expected / distance
        assert output["forces"][0, 1].item() == pytest.approx(pull, rel=10 * COULOMB_TOLERANCE)
        energies.append(expected)
    assert energies == sorted(energies)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_batch_of_crystals_slabs_and_molecules_equals_single(kind: str, random_crystal, make_potential) -> None:
    model = make_potential(kind)
    flags = [[True] * 3, *SLABS, [False] * 3, [True] * 3, [False] * 3]
    structures = [with_pbc(random_crystal(seed, 3 + seed % 4), pbc) for seed, pbc in enumerate(flags)]
    together = model(collate(structures))
    alone = [model(s) for s in structures]
    for name, value in together.items():
        assert largest(value, torch.cat([output[name] for output in alone])) < BATCH_TOLERANCE, name


def test_short_range_treats_any_periodicity(random_crystal, make_potential) -> None:
    model, whole = make_potential("none"), random_crystal(0, 5)
    outputs = []
    for pbc in ([True, True, False], [False, True, False], [False] * 3):
        s = add_edges(make_structure(whole.numbers, whole.positions, whole.cell[0], pbc), 4.0)
        outputs.append(model(s)["energy"].item())
    assert len(set(outputs)) == 3


@pytest.mark.parametrize("kind", ["none", "coulomb"])
@pytest.mark.parametrize("pbc", [[True, True, False], [False] * 3], ids=str)
def test_stress_wants_three_periodic_directions(kind: str, pbc: list[bool], random_crystal, make_potential) -> None:
    with pytest.raises(StructureError, match="stress is defined only"):
        make_potential(kind)(with_pbc(random_crystal(0, 5), pbc), stress=True)


# --- precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("long_range", [torch.float64, torch.float32], ids=str)
def test_float32_agrees_with_float64(kind: str, long_range: torch.dtype, random_crystal, make_potential) -> None:
    batch = collate([random_crystal(seed, n) for seed, n in enumerate((6, 9, 7))])
    model = make_potential(kind)
    double = model(batch, stress=True)
    single = model.set_precision(torch.float32, long_range=long_range)(batch, stress=True)
    for name in ("energy_short", "forces", "stress"):
        scale = double[name].abs().max().item()
        assert scale > 1e-3
        assert 0 < largest(single[name], double[name]) < FLOAT32_TOLERANCE * scale, name
    if long_range == torch.float64:
        assert torch.equal(single["energy_long"], double["energy_long"])
    elif kind != "none":
        scale = double["energy_long"].abs().max().item()
        assert 0 < largest(single["energy_long"], double["energy_long"]) < FLOAT32_TOLERANCE * scale
    assert {value.dtype for name, value in single.items() if name != "charges"} == {torch.float64}


def test_float32_far_from_the_origin(random_crystal, make_potential) -> None:
    s = random_crystal(3, 7)
    model = make_potential("coulomb").set_precision(torch.float32, long_range=torch.float32)
    near, far = model(s), model(moved(s, positions=s.positions + 1000.0))
    for name in ("energy", "forces"):
        assert largest(near[name], far[name]) < FLOAT32_TOLERANCE * near[name].abs().max().item()


# --- second derivatives: the gradient of a force loss by parameters


def loss(model: Potential, batch: Structure, *, create_graph: bool) -> Tensor:
    output = model(batch, stress=True, create_graph=create_graph)
    target = torch.linspace(-1.0, 1.0, output["forces"].numel(), dtype=torch.float64).reshape(-1, 3)
    return (
        ((output["forces"] - target) ** 2).mean()
        + 0.1 * (output["energy"] ** 2).mean()
        + (output["stress"] ** 2).sum() * 10
    )


PARAMETERS = [
    "short.backbone.embedding.weight",
    "short.backbone.filter_net.weight",
    "short.backbone.interactions.1.interatomic_context_net.0.weight",
    "short.backbone.mixing.0.mu_channel_mix.weight",
    "short.readout.first.weight",
    "long.charges.values",
    "long.reciprocal.kernel.fcn.first.weight",
    "long.reciprocal.kernel.fcn.last.weight",
]


@pytest.mark.parametrize("neutrality", ["background", "shift"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_gradient_of_a_force_loss_by_parameters(name: str, neutrality: str, random_crystal, make_potential) -> None:
    model = make_potential("coulomb", neutrality=neutrality)
    batch = collate([charged(random_crystal), random_crystal(1, 4)])
    parameter = dict(model.named_parameters())[name]
    (gradient,) = torch.autograd.grad(loss(model, batch, create_graph=True), parameter)
    direction = gradient / torch.linalg.vector_norm(gradient)
    start = parameter.detach().clone()
    slope = 0.0
    h = 1e-3 * max(1.0, float(start.abs().max()))
    for point, weight in POINTS.items():
        with torch.no_grad():
            parameter.copy_(start + point * h * direction)
        slope += weight / h * loss(model, batch, create_graph=False).item()
    expected = torch.linalg.vector_norm(gradient).item()
    assert expected > 1e-6
    assert slope == pytest.approx(expected, rel=PARAMETER_TOLERANCE)


@pytest.mark.parametrize("kind", ["no-complement", "free", "none"])
def test_every_parameter_gets_a_gradient(kind: str, random_crystal, make_potential) -> None:
    model = make_potential(kind)
    batch = collate([charged(random_crystal), random_crystal(1, 4)])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(model, batch, create_graph=True), parameters, allow_unused=True)
    idle = {name for name, g in zip(names, gradients, strict=True) if g is None or not g.any()}
    # a constant of the FCN cancels in 1 + FCN(k) - FCN(0)
    assert idle <= {"long.reciprocal.kernel.fcn.last.bias"}
