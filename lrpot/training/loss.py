"""What an error costs: its square, its magnitude, or first the one and then the other."""

from __future__ import annotations

from torch import Tensor

from lrpot.config import TrainingConfig


def penalty(errors: Tensor, config: TrainingConfig) -> Tensor:
    """The cost of each error.

    huber is x^2 up to the threshold t and t (2 |x| - t) beyond, with the slope unbroken: what is small costs the same
    as with mse.

    Args:
        errors: any shape, in units of what there is to learn.
        config: `loss` and `huber_threshold`.
    """
    if config.loss == "mse":
        return errors**2
    size = errors.abs()
    if config.loss == "mae":
        return size
    inner = size.clamp(max=config.huber_threshold)
    return inner * (2.0 * size - inner)
