"""Features of the elements: nine public quantities as one-hot bins, beside features that are learned.

Layout of the 92 bins: Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018), as far as it is published; values and
bins are lrpot's own (datasets/elements/make_elements.py), so that elements which share all bins there (La and Ce, ...)
still differ by what is learned.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn

from lrpot.structure import MAX_ATOMIC_NUMBER

# Of the quantities with bins of equal width: column, number of bins, range, what is binned.
_BINNED: dict[str, tuple[int, float, float, Callable[[float], float]]] = {
    "electronegativity": (10, 0.5, 4.0, float),
    "covalent_radius_pm": (10, 25.0, 250.0, float),
    "ionization_energy_eV": (10, 1.3, 3.3, math.log),
    "electron_affinity_eV": (10, -3.0, 3.7, float),
    "molar_volume_cm3": (10, 1.5, 4.3, math.log),
}

# In this order; 19 groups, for elements of the f block have none.
_BLOCKS = (
    ("group", 19),
    ("period", 7),
    ("electronegativity", 10),
    ("covalent_radius_pm", 10),
    ("valence_electrons", 12),
    ("ionization_energy_eV", 10),
    ("electron_affinity_eV", 10),
    ("block", 4),
    ("molar_volume_cm3", 10),
)

N_BINS = sum(size for _, size in _BLOCKS)


@cache
def element_table() -> dict[int, dict[str, str]]:
    """elements.csv by atomic number; the names of its columns say the units, and what is not known is empty."""
    text = (files("lrpot.properties") / "elements.csv").read_text(encoding="utf-8")
    return {int(row["number"]): row for row in csv.DictReader(text.splitlines())}


@cache
def element_bins() -> Tensor:
    """(119, 92) zeros and ones by atomic number; a quantity that is not known has none, and number 0 is empty."""
    table = torch.zeros(MAX_ATOMIC_NUMBER + 1, N_BINS, device="cpu")  # whatever the device of who asks first
    for number, row in element_table().items():
        start = 0
        for name, size in _BLOCKS:
            place = _bin(name, row[name])
            if place is not None:
                table[number, start + place] = 1.0
            start += size
    return table


@cache
def element_quantities() -> Tensor:
    """(119, 8) numbers by atomic number: group, period, electronegativity, covalent radius in pm, valence electrons,
    logarithms of the ionization energy in eV, electron affinity in eV, logarithm of the molar volume in cm^3.

    Elements of the f block count as group 3. What is not known, and number 0, has the median of all.
    """
    names = [name for name, _ in _BLOCKS if name != "block"]
    table = torch.full((MAX_ATOMIC_NUMBER + 1, len(names)), torch.nan, device="cpu")
    for number, row in element_table().items():
        for place, name in enumerate(names):
            text = row[name] or ("3" if name == "group" else "")
            if text:
                value = float(text)
                table[number, place] = (
                    math.log(value) if name in ("ionization_energy_eV", "molar_volume_cm3") else value
                )
    return torch.where(table.isnan(), table.nanmedian(dim=0).values, table)


def _bin(name: str, text: str) -> int | None:
    if name == "group":
        return int(text) if text else 0
    if not text:
        return None
    if name == "period":
        return int(text) - 1
    if name == "valence_electrons":
        # open f shells have up to 17; bins end at 12
        return min(int(text), 12) - 1
    if name == "block":
        return "spdf".index(text)
    size, low, high, of = _BINNED[name]
    return min(max(int((of(float(text)) - low) / (high - low) * size), 0), size - 1)


class ElementEmbedding(nn.Module):
    """Features of each atom from its element: the bins, and a vector that is learned."""

    bins: Tensor

    def __init__(self, features: int, learned: int = 32) -> None:
        """
        Args:
            features: width of what comes out. learned: numbers by element that are learned; 0: the bins alone.
        """
        super().__init__()
        self.register_buffer("bins", element_bins(), persistent=False)
        self.learned = nn.Embedding(MAX_ATOMIC_NUMBER + 1, learned) if learned else None
        self.linear = nn.Linear(N_BINS + learned, features)

    def forward(self, numbers: Tensor) -> Tensor:
        """(N, features) from atomic numbers (N,)."""
        known = self.bins[numbers].to(self.linear.weight.dtype)
        if self.learned is not None:
            known = torch.cat([known, self.learned(numbers)], dim=1)
        return self.linear(known)
