"""The check of the contract passes what is sound, and finds every defect that it is there for."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lrpot.backbones import BACKBONES, AtomFeatures, PaiNN
from lrpot.backbones.equivariant import Equivariant
from lrpot.config import BackboneConfig
from lrpot.errors import ContractError
from lrpot.smooth import taper
from lrpot.structure import batch_index
from lrpot.testing import CHECKS, GPU_CHECKS, check_backbone

CUTOFF = 4.0  # A
SMALL = {"features": 8, "interactions": 2, "cutoff": CUTOFF}

UNION = get_args(BackboneConfig)[0]
SECTIONS = {kind.model_fields["name"].default: kind for kind, _ in map(get_args, get_args(UNION))}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_the_contract(name: str) -> None:
    section = SECTIONS[name].model_validate({"name": name} | SMALL)
    assert pickle.loads(pickle.dumps(section)) == section
    report = check_backbone(lambda: BACKBONES[name](**section.model_dump(exclude={"name"})))
    assert report.curvature_continuous
    assert report.on_gpu == torch.cuda.is_available()


@pytest.mark.parametrize("cutoff", [2.5, 8.0])
def test_cutoffs_of_any_length(cutoff: float) -> None:
    check_backbone(lambda: PaiNN(features=4, interactions=1, radial_basis=6, cutoff=cutoff), elements=(14,), seed=3)


def test_the_report_knows_powers_of_the_distance() -> None:
    smooth, cosine = (
        check_backbone(lambda c=c: PaiNN(features=8, interactions=1, cutoff=CUTOFF, cutoff_function=c))
        for c in ("smooth", "cosine")
    )
    for report, order in ((smooth, 3), (cosine, 2)):  # of taper and of 1 + cos
        found = {check.name: check.figure for check in report.checks}
        assert found["order of decay at the cutoff: value"] == pytest.approx(order, abs=0.1)
        assert found["order of decay at the cutoff: first derivative"] == pytest.approx(order - 1, abs=0.1)
    assert "second derivative continuous at the cutoff: yes" in str(smooth)
    assert "second derivative continuous at the cutoff: no" in str(cosine)


class Sound(nn.Module):
    """A small network without vectors: one step of messages. Defects are added to it."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.cutoff, self.features = CUTOFF, features
        self.embedding = nn.Embedding(20, features)
        self.filters = nn.Linear(1, features)
        self.dense = nn.Linear(features, features)

    def forward(self, batch, vectors: Tensor) -> AtomFeatures:
        neighbour, centre = batch.edge_index
        distances = self.lengths(vectors)
        messages = torch.tanh(self.filters(distances[:, None])) * self.window(distances)[:, None]
        messages = messages * self.embedding(batch.numbers)[neighbour]
        here = self.embedding(batch.numbers)
        summed = self.gather(torch.zeros_like(here), centre, messages)
        return self.finish(batch, vectors, here + nn.functional.silu(self.dense(summed)))

    def lengths(self, vectors: Tensor) -> Tensor:
        return torch.linalg.vector_norm(vectors, dim=1)

    def window(self, distances: Tensor) -> Tensor:
        return taper(distances, self.cutoff)

    def gather(self, zeros: Tensor, centre: Tensor, messages: Tensor) -> Tensor:
        return zeros.index_add(0, centre, messages)

    def finish(self, batch, vectors: Tensor, scalar: Tensor) -> AtomFeatures:
        return AtomFeatures(scalar, None)


def test_a_backbone_without_vectors_passes() -> None:
    report = check_backbone(Sound)
    assert [check.name for check in report.checks[: len(CHECKS)]] == [name for name, *_ in CHECKS]
    assert all(check.figure <= check.limit for check in report.checks[: len(CHECKS)])


class Mutates(Sound):
    def finish(self, batch, vectors, scalar):
        vectors.detach().mul_(1.0)
        batch.numbers.add_(0)
        batch.positions[0, 0] += 1.0
        return AtomFeatures(scalar, None)


class AddsAField(Sound):
    def finish(self, batch, vectors, scalar):
        batch.cache = scalar
        return AtomFeatures(scalar, None)


class WrongWidth(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar[:, :-1], None)


class NotFeatures(Sound):
    def finish(self, batch, vectors, scalar):
        return scalar


class DoubleConstant(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar * torch.ones(1, dtype=torch.float64), None)


class WholeCutoff(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.cutoff = 4


class MeanOfNeighbours(Sound):
    """0 / 0 where there are none."""

    def gather(self, zeros, centre, messages):
        counts = torch.bincount(centre, minlength=len(zeros))
        return zeros.index_add(0, centre, messages) / counts[:, None]


class RootOfZero(Sound):
    """Finite features, but the derivative of the root at zero is not."""

    def finish(self, batch, vectors, scalar):
        total = torch.zeros(len(scalar), 3).to(vectors).index_add(0, batch.edge_index[1], vectors)
        return AtomFeatures(scalar + torch.sqrt((0.0 * total).sum(dim=1, keepdim=True)), None)


class LargestIndex(Sound):
    def finish(self, batch, vectors, scalar):
        batch.edge_index.max()
        return AtomFeatures(scalar, None)


class Dice(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar + torch.rand_like(scalar), None)


class Blind(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(self.embedding(batch.numbers), None)


class MeanOfBatch(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar - scalar.mean(dim=0), None)


class FirstEdge(Sound):
    """Takes the first edge of the list for something special."""

    def gather(self, zeros, centre, messages):
        weights = torch.ones(len(messages), 1).to(messages)
        weights[:1] = 2.0
        return zeros.index_add(0, centre, weights * messages)


class AtomIndex(Sound):
    def finish(self, batch, vectors, scalar):
        index = batch_index(batch)
        first = torch.searchsorted(index, index)
        return AtomFeatures(scalar + 0.1 * (torch.arange(len(scalar)) - first)[:, None].to(scalar), None)


class Manhattan(Sound):
    def lengths(self, vectors):
        return torch.sqrt(vectors[:, 0] ** 2 + 1.1 * vectors[:, 1] ** 2 + vectors[:, 2] ** 2)


class Handed(Sound):
    """Turns with the crystal, but its cross product does not change sign in a mirror."""

    def finish(self, batch, vectors, scalar):
        centre = batch.edge_index[1]
        short, long = (
            torch.zeros(len(scalar), 3)
            .to(vectors)
            .index_add(0, centre, vectors * self.window(self.lengths(vectors))[:, None] ** power)
            for power in (1, 2)
        )
        return AtomFeatures(scalar, torch.linalg.cross(short, long)[:, :, None].expand(-1, -1, self.features))


class ReadsPositions(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar + batch.positions.sum(dim=1, keepdim=True).to(scalar), None)


class NoImages(Sound):
    """Leaves out the edges of an atom to its own images."""

    def forward(self, batch, vectors):
        kept = batch.edge_index[0] != batch.edge_index[1]
        other = batch.clone()
        other.edge_index = batch.edge_index[:, kept]
        return super().forward(other, vectors[kept])


class CountsAtoms(Sound):
    def finish(self, batch, vectors, scalar):
        index = batch_index(batch)
        return AtomFeatures(scalar * torch.bincount(index)[index][:, None], None)


class Detached(Sound):
    def window(self, distances):
        return super().window(distances.detach())


class OnceDifferentiable(torch.autograd.Function):
    """The square, whose derivative autograd takes for a constant."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * 2.0 * x.detach()


class NoSecondDerivative(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures(OnceDifferentiable.apply(scalar), None)


class Cancellation(Sound):
    def finish(self, batch, vectors, scalar):
        return AtomFeatures((scalar + 1e4) - 1e4, None)


class HiddenWeight(Sound):
    """A tensor that no state_dict knows."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.rand(1)

    def finish(self, batch, vectors, scalar):
        return AtomFeatures(scalar * self.secret.to(scalar), None)


class Lambda(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda x: x


class SharedCopy(Sound):
    def __deepcopy__(self, memo):
        other = SharedCopy()
        other.__dict__["_modules"] = self.__dict__["_modules"]
        return other.eval()


class HardCutoff(Sound):
    def window(self, distances):
        return torch.ones_like(distances)


class LinearCutoff(Sound):
    def window(self, distances):
        return 1.0 - distances / self.cutoff


class WithIrreps(Sound):
    """Sums over neighbours of a scalar and a vector."""

    irreps_out = "1x0e+1x1o"

    def tensors(self, batch, vectors):
        return vectors * self.window(self.lengths(vectors))[:, None]

    def finish(self, batch, vectors, scalar):
        summed = torch.zeros(len(scalar), 3).to(vectors)
        summed = summed.index_add(0, batch.edge_index[1], self.tensors(batch, vectors))
        return AtomFeatures(scalar, None, torch.cat([scalar[:, :1], summed], dim=1))


def test_irreps_that_turn_pass() -> None:
    check_backbone(WithIrreps)
    check_backbone(lambda: Equivariant(**SMALL, lmax=2, tensors=True))


class IrrepsOfPositions(WithIrreps):
    def tensors(self, batch, vectors):
        return super().tensors(batch, vectors) * batch.positions[batch.edge_index[1]].to(vectors)


class IrrepsOfAnotherParity(WithIrreps):
    irreps_out = "1x0e+1x1e"


class IrrepsWithoutDecay(WithIrreps):
    def tensors(self, batch, vectors):
        return vectors


class IrrepsOfAnotherWidth(WithIrreps):
    irreps_out = "1x0e+2x1o"


class IrrepsWithoutName(WithIrreps):
    irreps_out = None


class IrrepsOfTheBatch(WithIrreps):
    def tensors(self, batch, vectors):
        return super().tensors(batch, vectors) * len(batch.numbers)


class DoubleIrreps(WithIrreps):
    def finish(self, batch, vectors, scalar):
        found = super().finish(batch, vectors, scalar)
        return found._replace(irreps=found.irreps.double())


class Raises(Sound):
    def finish(self, batch, vectors, scalar):
        raise ValueError("two\nlines")


DEFECTS = {
    Mutates: "input is not changed: positions changed",
    AddsAField: r"input is not changed: the batch has other fields than before: \['cache'\]",
    WrongWidth: r"shapes and dtypes: scalar features have shape \(8, 5\) and type torch.float64, expected \(8, 6\)",
    NotFeatures: "shapes and dtypes: forward returned Tensor",
    DoubleConstant: "shapes and dtypes: scalar features .* type torch.float64, expected .* torch.float32",
    WholeCutoff: "attribute cutoff is 4; set self.cutoff to a positive float, A",
    MeanOfNeighbours: "atom without neighbours: features or gradients are not finite",
    RootOfZero: "atom without neighbours: features or gradients are not finite",
    LargestIndex: "no edges at all: the backbone raised",
    Dice: "deterministic",
    Blind: "sees its neighbours",
    MeanOfBatch: "batch = single",
    FirstEdge: "order of edges",
    AtomIndex: "permutation of atoms",
    Manhattan: "rotation",
    Handed: "reflection",
    ReadsPositions: "translation and wrapping",
    NoImages: "one-atom cell",
    CountsAtoms: "2 x 1 x 1 supercell",
    Detached: "gradient against finite differences",
    NoSecondDerivative: "second derivatives against finite differences",
    Cancellation: "float32 against float64",
    HiddenWeight: "state_dict",
    Lambda: "pickle: the backbone raised",
    SharedCopy: "deepcopy: a deep copy shares weights",
    HardCutoff: "order of decay at the cutoff: value is",
    LinearCutoff: r"order of decay at the cutoff: value is 1\.00,",
    IrrepsOfPositions: "rotation",
    IrrepsOfAnotherParity: "reflection",
    IrrepsWithoutDecay: "order of decay at the cutoff: value is",
    IrrepsOfAnotherWidth: r"shapes and dtypes: irreps features have shape \(8, 4\) .* expected \(8, 7\)",
    IrrepsWithoutName: "shapes and dtypes: it has irreps, but no attribute irreps_out",
    IrrepsOfTheBatch: "batch = single",
    DoubleIrreps: "shapes and dtypes: irreps features .* type torch.float64, expected .* torch.float32",
    Raises: "shapes and dtypes: the backbone raised ValueError: two lines",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda kind: kind.__name__)
def test_defects_are_found(defect: type[Sound]) -> None:
    with pytest.raises(ContractError, match=f"^{DEFECTS[defect]}") as found:
        check_backbone(defect)
    message = str(found.value)
    assert "\n" not in message
    cures = [cure for *_, cure in CHECKS] + ["taper(distance, cutoff)", "set self.cutoff"]
    assert any(cure in message for cure in cures)


def test_every_check_has_a_defect_that_it_finds() -> None:
    found = {name for name, *_ in CHECKS for text in DEFECTS.values() if text.startswith(name)}
    assert found == {name for name, *_ in CHECKS}


def test_names_of_checks_differ() -> None:
    names = [name for name, *_ in itertools.chain(CHECKS, GPU_CHECKS)]
    assert len(set(names)) == len(names)
    assert all(math.isfinite(limit) for _, _, limit, _ in CHECKS)
