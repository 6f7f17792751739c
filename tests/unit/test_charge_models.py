"""All charge models in a potential: derivatives, invariances, backbones, files, training of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpot import load
from lrpot.build import build_potential
from lrpot.charges import CHARGES
from lrpot.config import make_config
from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError
from lrpot.interfaces.ase import LRCalculator
from lrpot.kspace import KernelByChannel
from lrpot.model_file import ModelInfo, save
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, make_structure
from tests.unit.test_potential import (
    BATCH_TOLERANCE,
    DERIVATIVE_TOLERANCE,
    POINTS,
    SLABS,
    charged,
    difference_forces,
    difference_stress,
    largest,
    loss,
    with_pbc,
)

RELATIVE = 1e-9  # of invariances
PARAMETER_TOLERANCE = 1e-6  # relative, of a loss gradient against differences
SEEING = ["environment", "equilibration"]
MakePotential = Callable[..., Potential]
RandomCrystal = Callable[..., Structure]

BACKBONES = {
    "painn": {"name": "painn", "features": 8, "interactions": 1, "cutoff": 4.0},
    "dimenet++": {"name": "dimenet++", "features": 8, "interactions": 1, "triplet_features": 4, "output_features": 8}
    | {"basis_features": 4, "spherical_basis": 3, "cutoff": 4.0},
    "equivariant": {"name": "equivariant", "features": 4, "interactions": 1, "radial_hidden": 8, "cutoff": 4.0},
}


# --- derivatives


@pytest.mark.parametrize("kind", ["coulomb", "no-complement", "free"])
@pytest.mark.parametrize("charges", SEEING)
def test_forces_and_stress_are_slopes(
    charges: str, kind: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    """Left-handed, skewed, unwrapped, charged; how the charges follow the atoms counts exactly once."""
    neutrality = "shift" if kind == "no-complement" else "background"
    model, s = make_potential(kind, charges=charges, neutrality=neutrality), charged(random_crystal)
    output = model(s, stress=True)
    assert np.ptp(output["charges"].numpy()) > 0.1
    assert largest(output["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE
    assert largest(output["stress"][0], difference_stress(model, s)) < DERIVATIVE_TOLERANCE
    assert float(output["forces"].sum(dim=0).abs().max()) < RELATIVE


@pytest.mark.parametrize("charges", SEEING)
def test_forces_by_the_charges_are_not_forgotten(
    charges: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    """With charges held, forces are wrong by far more than what the other tests allow: they would notice."""
    model, s = make_potential("coulomb", charges=charges), charged(random_crystal)
    features = model.short.features
    whole = model(s)["forces"]
    model.short.features = lambda *given: features(*given).detach()  # type: ignore[method-assign]
    long = model(s, parts=["long"])["forces"]
    model.short.features = features  # type: ignore[method-assign]
    assert largest(long, model(s, parts=["long"])["forces"]) > 1e3 * DERIVATIVE_TOLERANCE
    assert largest(whole, long) > 1e3 * DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("charges", SEEING)
@pytest.mark.parametrize("pbc", [SLABS[1], [False] * 3], ids=str)
def test_forces_of_slabs_and_molecules_are_slopes(
    charges: str, pbc: list[bool], random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges).requires_grad_(False)
    s = with_pbc(random_crystal(22, 3, left_handed=True, total_charge=0.3), pbc)
    assert largest(model(s)["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("charges", SEEING)
def test_every_backbone_gives_features_to_the_charges(
    charges: str, backbone: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges, backbone=BACKBONES[backbone]).requires_grad_(False)
    torch.nn.init.normal_(model.long.charges.network.last.weight)
    s = random_crystal(23, 3, left_handed=True, total_charge=0.3)
    output = model(s)
    assert float((output["charges"][0] - output["charges"][2]).abs()) > 1e-4  # one element, two surroundings
    assert largest(output["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("charges", CHARGES)
def test_channels_have_forces_too(charges: str, random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model, s = make_potential("coulomb", charges=charges, channels=2).requires_grad_(False), charged(random_crystal)
    output = model(s)
    assert output["charges"].shape == (7, 2)
    assert float(output["charges"][:, 1].abs().max()) > 1e-4
    assert largest(output["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("charges", CHARGES)
def test_a_kernel_for_each_channel(charges: str, random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model, s = make_potential("no-complement", charges=charges, channels=2), charged(random_crystal)
    other = make_potential("free", charges="equilibration", seed=1)
    model.long.reciprocal.kernel = KernelByChannel([model.long.reciprocal.kernel, other.long.reciprocal.kernel])
    model.requires_grad_(False)
    assert largest(model(s)["forces"], difference_forces(model, s)) < DERIVATIVE_TOLERANCE


@pytest.mark.parametrize("charges", SEEING)
@pytest.mark.parametrize("kind", ["coulomb", pytest.param("free", marks=pytest.mark.slow)])
def test_gradient_of_a_force_loss_by_parameters(
    charges: str, kind: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential(kind, charges=charges, channels=2)
    batch = collate([random_crystal(21, 3, left_handed=True), random_crystal(1, 4, total_charge=-1.0)])
    named = [
        (name, p)
        for name, p in model.named_parameters()
        if name.startswith(("long.charges.", "long.reciprocal.kernel.fcn.last"))
        or name in ("short.backbone.embedding.weight", "short.readout.first.weight")
    ]
    gradients = torch.autograd.grad(loss(model, batch, create_graph=True), [p for _, p in named], allow_unused=True)
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        if name.endswith("fcn.last.bias") and kind == "coulomb":
            continue  # it cancels in FCN(k) - FCN(0)
        if name.endswith("log_width") and kind == "free":
            continue  # the kernel itself smears the charges
        assert gradient is not None, name
        expected = torch.linalg.vector_norm(gradient).item()
        direction, start = gradient / expected, parameter.detach().clone()
        slope, h = 0.0, 1e-3 * max(0.1, float(start.abs().max()))
        for point, weight in POINTS.items():
            with torch.no_grad():
                parameter.copy_(start + point * h * direction)
            slope += weight / h * loss(model, batch, create_graph=False).item()
        with torch.no_grad():
            parameter.copy_(start)
        assert expected > 1e-6, name
        assert slope == pytest.approx(expected, rel=PARAMETER_TOLERANCE), name


def test_charges_can_be_trained_on_too(random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    """A loss of charges and forces together, by the electronegativities and hardness."""
    model, s = make_potential("coulomb", charges="equilibration"), charged(random_crystal)
    charges = model.long.charges

    def value(create_graph: bool) -> Tensor:
        output = model(s, create_graph=create_graph)
        return (output["charges"] ** 3).sum() + (output["forces"] ** 2).sum()

    for parameter in (charges.values, charges.raw_hardness, charges.log_width):
        (gradient,) = torch.autograd.grad(value(True), parameter)
        start, h, slope = parameter.detach().clone(), 1e-3, 0.0
        for point, weight in POINTS.items():
            with torch.no_grad():
                parameter.copy_(start + point * h * gradient / gradient.norm())
            slope += weight / h * value(False).item()
        with torch.no_grad():
            parameter.copy_(start)
        assert slope == pytest.approx(gradient.norm().item(), rel=PARAMETER_TOLERANCE)


# --- invariances


def made_of(s: Structure, positions: Tensor, cell: Tensor, numbers: Tensor | None = None, times: int = 1) -> Structure:
    numbers = s.numbers if numbers is None else numbers
    charge = times * float(s.total_charge[0])
    return add_edges(make_structure(numbers, positions, cell, [True] * 3, total_charge=charge), 4.0)


def turned(seed: int, *, mirror: bool) -> Tensor:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return torch.from_numpy(turn * (1.0 if (np.linalg.det(turn) < 0) == mirror else -1.0))


def transformed(name: str, s: Structure) -> tuple[Structure, Tensor, Tensor, int]:
    """The same crystal otherwise: its structure, the atoms of the old one, the rotation, how many times as large."""
    x, cell, n = s.positions, s.cell[0], s.num_nodes
    same, eye = torch.arange(n), torch.eye(3, dtype=torch.float64)
    if name == "translation":
        return made_of(s, x + torch.tensor([0.3, -7.1, 2.2]), cell), same, eye, 1
    if name == "wrapping":
        whole = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (n, 3)).astype(float))
        return made_of(s, x + whole @ cell, cell), same, eye, 1
    if name in ("rotation", "reflection"):
        turn = turned(1, mirror=name == "reflection")
        return made_of(s, x @ turn, cell @ turn), same, turn, 1
    if name == "permutation":
        order = torch.from_numpy(np.random.default_rng(0).permutation(n))
        return made_of(s, x[order], cell, s.numbers[order]), order, eye, 1
    if name == "axes":
        return made_of(s, x, cell[[1, 2, 0]]), same, eye, 1
    if name == "unimodular":
        return (
            made_of(s, x, torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.float64) @ cell),
            same,
            eye,
            1,
        )
    if name == "left-handed":
        return made_of(s, x, cell * torch.tensor([[1.0], [1.0], [-1.0]])), same, eye, 1
    times = {"2x1x1": (2, 1, 1), "2x2x2": (2, 2, 2)}[name]
    images = torch.cartesian_prod(*(torch.arange(float(t), dtype=torch.float64) for t in times)) @ cell
    larger = torch.tensor(times, dtype=torch.float64)[:, None] * cell
    copies = len(images)
    positions = (images[:, None] + x).reshape(-1, 3)
    return made_of(s, positions, larger, s.numbers.repeat(copies), copies), same.repeat(copies), eye, copies


TRANSFORMATIONS = ["translation", "wrapping", "rotation", "reflection", "permutation", "axes", "unimodular"]
TRANSFORMATIONS += ["left-handed", "2x1x1", "2x2x2"]


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("charges", SEEING)
def test_invariance(charges: str, name: str, random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model = make_potential("coulomb", charges=charges).requires_grad_(False)
    s = random_crystal(24, 5, total_charge=0.4 if "x" not in name else 0.0)
    other, atoms, turn, times = transformed(name, s)
    one, two = model(s, stress=True), model(other, stress=True)
    energy = one["energy"].item()
    assert two["energy"].item() == pytest.approx(times * energy, rel=RELATIVE)
    scale = one["forces"].abs().max().item()
    assert largest(two["charges"], one["charges"][atoms]) < 10 * RELATIVE
    assert largest(two["forces"], one["forces"][atoms] @ turn) < 10 * RELATIVE * scale
    assert largest(two["stress"], turn.mT @ one["stress"] @ turn) < 10 * RELATIVE * one["stress"].abs().max().item()


@pytest.mark.parametrize("charges", SEEING)
def test_batch_equals_single(charges: str, random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model = make_potential("coulomb", charges=charges, channels=2)
    structures = [random_crystal(0, 5), random_crystal(1, 1, left_handed=True), random_crystal(3, 7, total_charge=-0.4)]
    together, alone = model(collate(structures), stress=True), [model(s, stress=True) for s in structures]
    for name, value in together.items():
        assert largest(value, torch.cat([output[name] for output in alone])) < BATCH_TOLERANCE, name


# --- start, settings, files, calculator


@pytest.mark.parametrize("charges", SEEING)
def test_the_network_changes_nothing_at_first(charges: str, random_crystal: RandomCrystal) -> None:
    s = random_crystal(0, 5, cutoff=4.0)
    settings = {"model.charges.kind": charges, "model.backbone.cutoff": 4.0, "model.backbone.features": 8}
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_potential(make_config(None, settings).model, [11, 17]).set_precision(torch.float64)
        model.long.charges.set_values({11: 0.7, 17: -0.7})
        outputs.append(model(s, parts=["long"]))
    assert torch.equal(outputs[0]["charges"], outputs[1]["charges"])
    assert torch.equal(outputs[0]["energy"], outputs[1]["energy"])
    if charges == "environment":
        assert outputs[0]["charges"][:, 0].tolist() == [0.7, -0.7, 0.7, -0.7, 0.7]


def test_an_atom_that_its_own_field_holds_alone_has_no_long_range_energy(make_potential: MakePotential) -> None:
    """Charges of the surroundings without a complement: the energy in their own field is taken off."""
    s = add_edges(make_structure([11], [[0.1, 0.2, 0.3]], torch.zeros(3, 3), [False] * 3), 4.0)
    seen = {
        kind: make_potential("free", charges=kind)(s)["energy_long"].item() for kind in ("embedding", "environment")
    }
    assert abs(seen["embedding"]) > 0.1
    assert abs(seen["environment"]) < RELATIVE * abs(seen["embedding"])


def test_charges_without_a_long_range_part_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"charges.kind environment needs a long-range part, but kernel.form is none"):
        make_config(None, {"model.charges.kind": "environment", "model.kernel.form": "none"})
    with pytest.raises(ConfigError, match=r"model.charges.kind = 'flexible'"):
        make_config(None, {"model.charges.kind": "flexible"})


@pytest.mark.parametrize("charges", CHARGES)
def test_model_files_keep_everything(charges: str, random_crystal: RandomCrystal, tmp_path: Path) -> None:
    settings = {"model.charges.kind": charges, "model.charges.channels": 2, "model.charges.hidden": 6}
    config = make_config(None, settings | {"model.backbone.features": 8, "model.backbone.cutoff": 4.0})
    model = build_potential(config.model, [11, 17]).set_precision(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.long.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.info = ModelInfo(config=config.model_dump(mode="json"), elements=["Na", "Cl"])
    again = load(save(model, tmp_path / "model.pt"))
    s = random_crystal(0, 5, total_charge=1.0)
    one, two = model(s), again(s)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize("charges", SEEING)
def test_calculator_gives_charges_and_hears_of_the_total_charge(charges: str, make_potential: MakePotential) -> None:
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(2)
    atoms.rattle(0.1, seed=0)
    atoms.calc = LRCalculator(make_potential("coulomb", charges=charges))
    sums = []
    for total in (0.0, 1.0):
        atoms.info["charge"] = total
        atoms.get_potential_energy()
        sums.append(atoms.calc.results["charges"].sum())
    if charges == "equilibration":
        assert sums == pytest.approx([0.0, 1.0], abs=1e-10)
    else:
        assert sums[0] == pytest.approx(sums[1], abs=1e-12)
