"""What describes a crystal does not depend on how the crystal is written down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from lrpot.backbones import PaiNN
from lrpot.errors import ConfigError
from lrpot.properties.cgcnn import CGCNN
from lrpot.properties.crystograph import CrysToGraph
from lrpot.properties.diffraction import make_diffraction
from lrpot.properties.features import CrystalFeatures
from lrpot.properties.moce import MoCE
from lrpot.properties.prdnet import PRDNet
from lrpot.properties.regnet import ReGNet
from lrpot.properties.statistics import Statistics
from lrpot.properties.yu import ReciprocalDescriptor, ReciprocalPotential, Yu
from lrpot.structure import collate
from tests.unit.properties.crystals import CHANGES, CRYSTALS, graph, seen_by


class Diffracted(nn.Module):
    """An encoder with diffraction beside it, as a `PropertyModel` has it."""

    def __init__(self, encoder: nn.Module, **settings: Any) -> None:
        super().__init__()
        small = {"features": 16, "k_cutoff": 4.0, "channels": 3, "basis": 4, "shells": 8, "max_index": 2}
        self.encoder, self.cutoff, self.shells = encoder, encoder.cutoff, encoder.shells
        self.diffraction = make_diffraction(encoder.features, encoder.atom_features, **small | settings)

    def forward(self, batch: Data) -> CrystalFeatures:
        return self.diffraction(self.encoder(batch), batch)


def prdnet() -> PRDNet:
    return PRDNet(features=16, blocks=2, heads=4, basis=64)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "cgcnn": lambda: CGCNN(features=16, blocks=2),
    "yu": lambda: Yu(PaiNN(features=16, interactions=2, cutoff=4.0), ReciprocalDescriptor(charges=4)),
    "descriptor": lambda: Yu(None, ReciprocalDescriptor(charges=4)),
    "potential": lambda: Yu(None, ReciprocalPotential(charges=4)),
    "regnet": lambda: ReGNet(features=16, blocks=2),
    "messages": lambda: ReGNet(features=16, blocks=2, reciprocal=False),
    "prdnet": lambda: Diffracted(prdnet()),
    "attention": prdnet,
    "moce": lambda: MoCE(features=16, heads=2, blocks=2, reach=5.0, basis=8),
    "statistics": lambda: Statistics(features=16),
    "cgcnn, diffraction": lambda: Diffracted(CGCNN(features=16, blocks=2)),
    "painn, diffraction": lambda: Diffracted(Yu(PaiNN(features=16, interactions=2, cutoff=4.0), None)),
    "statistics, diffraction": lambda: Diffracted(Statistics(features=16)),
    "crystograph": lambda: CrysToGraph(features=16, blocks=2, edge_features=12),
    "walks": lambda: CrysToGraph(features=16, blocks=2, edge_features=12, encoding="bloch"),
}
PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "literal": lambda: ReGNet(features=16, blocks=2, variant="literal"),
    "threewave": lambda: ReGNet(features=16, blocks=2, variant="threewave"),
    "descriptor": lambda: Yu(None, ReciprocalDescriptor(charges=4, variant="published")),
    "miller": lambda: Diffracted(prdnet(), variant="published"),
    "laboratory": lambda: CrysToGraph(features=16, blocks=2, edge_features=12, variant="published"),
    "axes": lambda: MoCE(features=16, heads=2, blocks=2, reach=5.0, basis=8, variant="published"),
}
# what each of these forms breaks (design of the published models); everything else it keeps
BROKEN = {
    "literal": {"moved", "rotated", "mirrored", "other images", "cyclic axes", "sheared cell", "doubled", "eightfold"},
    "threewave": {"sheared cell", "doubled", "eightfold"},
    "descriptor": set(),
    "miller": {"moved", "cyclic axes", "sheared cell", "doubled", "eightfold"},
    "laboratory": {"rotated", "mirrored"},
    "axes": {"cyclic axes", "sheared cell", "doubled", "eightfold"},
}


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    """With weights that leave nothing at zero, in float64."""
    torch.manual_seed(0)
    encoder = make().double().eval()
    for name, parameter in encoder.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return encoder


def change_of(encoder: nn.Module, crystal: str, change: str) -> float:
    """Relative change of the features of a crystal."""
    atoms = CRYSTALS[crystal]()
    with torch.no_grad():
        before, after = (encoder(seen_by(encoder, version)).graph for version in (atoms, CHANGES[change](atoms)))
    # atoms of one kind are neutral, and their potential is zero
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("crystal", CRYSTALS)
@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_those_of_the_crystal(name: str, crystal: str) -> None:
    encoder = ready(ENCODERS[name])
    for change in CHANGES:
        assert change_of(encoder, crystal, change) < 1e-9, change


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_published_forms_break(name: str) -> None:
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        encoder = ready(PUBLISHED[name])
    found = {change: change_of(encoder, "triclinic", change) for change in CHANGES}
    for change, size in found.items():
        if change in BROKEN[name]:
            assert size > 1e-4, (change, size)
        else:
            assert size < 1e-9, (change, size)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_is_its_crystals(name: str) -> None:
    encoder = ready(ENCODERS[name])
    structures = [seen_by(encoder, make()) for make in CRYSTALS.values()]
    with torch.no_grad():
        together: CrystalFeatures = encoder(collate(structures))
        alone = [encoder(structure) for structure in structures]
    assert torch.allclose(together.graph, torch.cat([found.graph for found in alone]), rtol=1e-10, atol=1e-12)
    if together.atom is not None:
        assert torch.allclose(together.atom, torch.cat([found.atom for found in alone]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("crystal", CRYSTALS)
def test_gradients_are_finite(name: str, crystal: str) -> None:
    """Where whole classes of reflections are extinct, too."""
    encoder = ready(ENCODERS[name])
    encoder(seen_by(encoder, CRYSTALS[crystal]())).graph.sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


def test_a_form_that_is_not_known_is_refused() -> None:
    for make in (ReGNet, ReciprocalDescriptor, CrysToGraph, MoCE, partial(make_diffraction, 4, 4)):
        with pytest.raises(ConfigError, match="variant = 'printed'; choose one of invariant"):
            make(variant="printed")


def test_strain_across_a_shell_of_waves() -> None:
    """A wave that leaves the sphere takes nothing along: the invariant form has no step, the published one has."""
    atoms = CRYSTALS["rock salt"]()
    steps = {}
    for variant in ("invariant", "published"):
        with contextlib.nullcontext() if variant == "invariant" else pytest.warns(UserWarning, match="comparison"):
            encoder = ready(lambda variant=variant: Yu(None, ReciprocalDescriptor(charges=4, variant=variant)))
        values = []
        for strain in torch.linspace(-0.05, 0.05, 401).tolist():
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array * (1.0 + strain), scale_atoms=True)
            with torch.no_grad():
                values.append(encoder(graph(strained)).graph[0])
        jumps = torch.stack(values).diff(dim=0).abs().amax(dim=1)
        steps[variant] = float(jumps.max() / jumps.median())
    assert steps["invariant"] < 10.0 < steps["published"], steps
