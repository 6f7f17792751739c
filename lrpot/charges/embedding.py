"""One charge per element, and what is done about a cell whose charges do not add up to zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import ConfigError
from lrpot.kspace.neutrality import NEUTRALITY, shift
from lrpot.structure import batch_index


class EmbeddingCharges(nn.Module):
    """q_j = Emb(z_j), learned.

    neutrality "background" keeps the charges; a charged cell then lies in a uniform background, and the k = 0 term
    that is left out of the sum is that background. "shift" takes off the mean, q_j - mean(q) + Q / N, as published: in
    a cell with a vacancy that changes S(k) at every k.

    Source: Yu et al. 2022, q_j = Embedding(z_j) - q_neutral.
    """

    row: Tensor

    def __init__(self, elements: list[int], *, neutrality: str = "background") -> None:
        """
        Args:
            elements: atomic numbers, ascending.
            neutrality: "background" or "shift".
        Raises:
            ConfigError: an unknown neutrality.
        """
        super().__init__()
        if neutrality not in NEUTRALITY:
            raise ConfigError(f"neutrality = {neutrality!r}; choose one of {', '.join(NEUTRALITY)}")
        self.neutrality = neutrality
        self.elements = list(elements)
        row = torch.full((max(elements) + 1,), -1)
        row[elements] = torch.arange(len(elements))
        self.register_buffer("row", row, persistent=False)
        self.values = nn.Parameter(torch.zeros(len(elements), dtype=torch.float64))

    def set_values(self, charges: Mapping[int, float]) -> None:
        """Start from charges in e by atomic number; an element that is missing gets zero."""
        with torch.no_grad():
            for row, element in enumerate(self.elements):
                self.values[row] = charges.get(element, 0.0)

    def by_element(self) -> dict[int, float]:
        """Charges in e by atomic number."""
        return dict(zip(self.elements, self.values.tolist(), strict=True))

    def forward(self, batch: Data) -> Tensor:
        """(N, 1), e."""
        charges = self.values[self.row[batch.numbers]][:, None]
        if self.neutrality == "shift":
            charges = shift(charges, batch_index(batch), batch.cell.shape[0], batch.total_charge)
        return charges
