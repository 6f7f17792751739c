"""Charges onto the mesh and the field back: compiled loops are the tensor operations, and both are transposes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lrpot.kspace.taps as module
import lrpot.threads
from lrpot.kspace.taps import CompiledTaps, Grid, TensorTaps
from lrpot.kspace.window import window

# planes fewer than two windows, rows as many as one, and a mesh in which few windows go round the end
SIZES = [(4, 6, 10), (8, 4, 6), (20, 24, 30)]


def case(
    sizes: tuple[int, ...], width: int, n: int = 40, channels: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Grid, Tensor]:
    """Fractional coordinates, charges, mesh and a field."""
    generator = torch.Generator().manual_seed(0)
    fractional = torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5
    charges = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    field = torch.randn(channels, *sizes, generator=generator, dtype=torch.float64)
    grid = Grid(sizes, width, 0.6, torch.device("cpu"), dtype)
    return fractional.to(dtype), charges.to(dtype), grid, field.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [4, 5, 8, 9, 16])
@pytest.mark.parametrize("sizes", SIZES)
def test_loops_are_the_tensor_operations(sizes: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    sizes = tuple(max(size, width) for size in sizes)
    fractional, charges, grid, field = case(sizes, width, dtype=dtype)
    loops, tensors = CompiledTaps(fractional, grid), TensorTaps(fractional, grid)
    digits = 50 * torch.finfo(dtype).eps * width
    pairs = zip(
        (loops.spread(charges), *loops.gather(field, charges)),
        (tensors.spread(charges), *tensors.gather(field, charges)),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert one.dtype == other.dtype == dtype
        assert float((one - other).abs().max()) < digits * float(other.abs().max())
    for taps in (loops, tensors):
        torch.testing.assert_close(taps.look_up(field), taps.gather(field, charges)[0], rtol=digits, atol=digits)


@pytest.mark.parametrize("taps", [CompiledTaps, TensorTaps])
def test_one_charge_is_its_window(taps: type) -> None:
    sizes, width = (12, 14, 16), 7
    fractional = torch.tensor([[0.49, -0.21, 0.02]], dtype=torch.float64)
    grid = Grid(sizes, width, 0.6, torch.device("cpu"), torch.float64)
    density = taps(fractional, grid).spread(torch.tensor([[-1.5]], dtype=torch.float64))[0].numpy()
    factors = []
    for x, size in zip(fractional[0].tolist(), sizes, strict=True):
        distance = np.arange(size) - x * size
        factors.append(window(width, 0.6, distance - size * np.rint(distance / size)))
    expected = -1.5 * np.einsum("a,b,c->abc", *factors)
    assert np.abs(density - expected).max() < 1e-7  # the polynomials of a window of 7 points


@pytest.mark.parametrize("taps", [CompiledTaps, TensorTaps])
@pytest.mark.parametrize("sizes", SIZES)
def test_gathering_is_the_transpose_of_spreading(taps: type, sizes: tuple[int, ...]) -> None:
    fractional, charges, grid, field = case(sizes, 4)
    both = taps(fractional, grid)
    found, _ = both.gather(field, charges)
    assert float((both.spread(charges) * field).sum()) == pytest.approx(float((charges * found).sum()), rel=1e-12)


@pytest.mark.parametrize("taps", [CompiledTaps, TensorTaps])
def test_the_slope_is_the_derivative(taps: type) -> None:
    fractional, charges, grid, field = case((20, 24, 30), 8)
    _, slope = taps(fractional, grid).gather(field, charges)
    step = 1e-6

    def energies(shift: Tensor) -> Tensor:
        found, _ = taps(fractional + shift / grid.counts, grid).gather(field, charges)
        return (charges * found).sum(dim=1)

    for axis in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[axis]
        difference = (energies(shift) - energies(-shift)) / (2.0 * step)
        assert float((difference - slope[:, axis]).abs().max()) < 1e-7 * float(slope.abs().max())


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fractional, charges, grid, field = case((9, 10, 12), 6)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(lrpot.threads, "parts", lambda work, threads=threads: threads)
        taps = CompiledTaps(fractional, grid)
        found.append((taps.spread(charges), *taps.gather(field, charges)))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_atoms_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    fractional, charges, grid, field = case((20, 24, 30), 7)
    whole = TensorTaps(fractional, grid)
    monkeypatch.setattr(module, "TAPS", 11 * 7**3)
    blocks = TensorTaps(fractional, grid)
    assert len(blocks.blocks) == 4
    pairs = zip(
        (whole.spread(charges), *whole.gather(field, charges)),
        (blocks.spread(charges), *blocks.gather(field, charges)),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taps", [CompiledTaps, TensorTaps])
def test_no_atoms_and_nan(taps: type) -> None:
    fractional, charges, grid, field = case((8, 8, 8), 4, n=0)
    empty = taps(fractional, grid)
    assert not empty.spread(charges).any()
    assert empty.gather(field, charges)[0].shape == (0, 2)
    fractional, charges, grid, field = case((8, 8, 8), 4, n=3)
    fractional[1, 0] = torch.nan
    # it is found by its result, not by a crash
    assert bool(taps(fractional, grid).spread(charges).isnan().any())
