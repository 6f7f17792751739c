"""Crystals and small potentials that the tests share. Fixtures that end in a function are called by the test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from lrpot.build import build_potential
from lrpot.charges import EquilibratedCharges
from lrpot.config import ModelConfig
from lrpot.data.neighbours import add_edges
from lrpot.potential import Potential
from lrpot.structure import Structure, make_structure

CUTOFF = 4.0  # A, of crystals and potentials unless a test asks for another
NEAREST = 2.0  # A; no two atoms of a random crystal come closer
VOLUME_PER_ATOM = 22.0  # A^3
KINDS = ("coulomb", "no-complement", "free", "none")
NEUTRALITIES = ("background", "shift")
NACL = (11, 17)

RandomCell = Callable[..., np.ndarray]
RandomCrystal = Callable[..., Structure]
MakePotential = Callable[..., Potential]

# A job in the background of a script ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _random_cell(seed: int, volume: float, *, left_handed: bool = False) -> np.ndarray:
    """(3, 3), rows are lattice vectors, A: lengths within a factor 1.6, angles of about 60 to 120 degrees, turned."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(0.8, 1.25, 3)) @ (np.eye(3) + np.tril(rng.uniform(-0.5, 0.5, (3, 3)), -1))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = cell @ turn
    if (np.linalg.det(cell) < 0) != left_handed:
        cell = cell * [1.0, 1.0, -1.0]  # the mirror image; positions are drawn afterwards
    return cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3)


def _random_crystal(
    seed: int,
    n: int = 6,
    *,
    elements: Sequence[int] = NACL,
    left_handed: bool = False,
    unwrapped: bool = False,
    total_charge: float = 0.0,
    cutoff: float = CUTOFF,
) -> Structure:
    """n atoms of alternating elements in a random triclinic cell, no two closer than NEAREST, with edges.

    An odd n of two elements with opposite charges makes a charged cell. `unwrapped` shifts atoms by whole cells.
    """
    rng = np.random.default_rng(seed + 1000)
    cell = _random_cell(seed, n * VOLUME_PER_ATOM, left_handed=left_handed)
    images = np.array(list(product((-2, -1, 0, 1, 2), repeat=3))) @ cell
    if np.linalg.norm(images[np.any(images != 0, axis=1)], axis=1).min() < NEAREST:
        raise AssertionError("the cell is too small for one atom; choose another seed")
    positions = np.empty((0, 3))
    while len(positions) < n:
        new = rng.random(3) @ cell
        far = np.linalg.norm(new + images[:, None] - positions, axis=2).min(initial=np.inf) > NEAREST
        positions = np.vstack([positions, new]) if far else positions
    if unwrapped:
        positions = positions + rng.integers(-3, 4, (n, 3)) @ cell
    numbers = [elements[i % len(elements)] for i in range(n)]
    return add_edges(make_structure(numbers, positions, cell, [True] * 3, total_charge=total_charge), cutoff)


def _make_potential(
    kind: str = "coulomb",
    *,
    neutrality: str = "background",
    elements: Sequence[int] = NACL,
    charge: float = 0.9,
    seed: int = 0,
    cutoff: float = CUTOFF,
    envelope: float = 0.9,
    cutoff_function: str = "smooth",
    dtype: torch.dtype = torch.float64,
    charges: str = "embedding",
    channels: int = 1,
    backbone: Mapping[str, Any] | None = None,
) -> Potential:
    """A small potential in which every part is at work: random readout, offsets and FCN, charges of both signs."""
    form, complement = {
        "coulomb": ("coulomb", "coulomb"),
        "no-complement": ("coulomb", "none"),
        "free": ("free", "none"),
        "none": ("none", "none"),
    }[kind]
    config = ModelConfig.model_validate(
        {
            "backbone": backbone
            or {"features": 16, "interactions": 2, "cutoff": cutoff, "cutoff_function": cutoff_function},
            "charges": {"kind": charges, "channels": channels, "neutrality": neutrality, "init": "zero", "hidden": 8},
            "kernel": {"form": form, "complement": complement, "tolerance": 1e-7, "envelope": envelope, "hidden": 16},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_potential(config, elements).set_precision(dtype)
        torch.nn.init.normal_(model.short.readout.last.weight)
        torch.nn.init.normal_(model.short.offset)
        model.short.scale.fill_(1.3)
        if model.long is not None:
            last = model.long.reciprocal.kernel.fcn.last
            torch.nn.init.normal_(last.weight, std=0.1)
            torch.nn.init.normal_(last.bias, std=0.1)
            signs = [1.0 if i % 2 == 0 else -1.0 for i in range(len(elements))]
            model.long.charges.set_values(dict(zip(sorted(elements), (charge * s for s in signs), strict=True)))
            if model.long.charges.sees_surroundings:
                torch.nn.init.normal_(model.long.charges.network.last.weight, std=0.3)
            if isinstance(model.long.charges, EquilibratedCharges):
                torch.nn.init.uniform_(model.long.charges.raw_hardness, 4.0, 8.0)
    return model.eval()


@pytest.fixture(scope="session")
def random_cell() -> RandomCell:
    """random_cell(seed, volume in A^3, left_handed=...) -> (3, 3) triclinic cell."""
    return _random_cell


@pytest.fixture(scope="session")
def random_crystal() -> RandomCrystal:
    """random_crystal(seed, n, ...) -> Structure with edges; see `_random_crystal`."""
    return _random_crystal


@pytest.fixture(scope="session")
def make_potential() -> MakePotential:
    """make_potential(kind, ...) -> Potential, kind in KINDS; see `_make_potential`."""
    return _make_potential
