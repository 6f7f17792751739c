"""Pieces that encoders share."""

from __future__ import annotations

import torch

from lrpot.properties.basis import Gaussians


def test_gaussians_hold_no_number_that_slows_float32() -> None:
    values = Gaussians(0.0, 4.0, 32)(torch.linspace(0.0, 12.0, 500))
    assert not ((values > 0) & (values < torch.finfo(torch.float32).tiny)).any()
    assert values.max() > 0.99
