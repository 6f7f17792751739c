"""A running average of the weights over the steps of a stage: smoother than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of the parameters of a module that are trained; the others are never touched.

    After step n the average is d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)): where the weights
    began is forgotten within some ten steps, however slow the decay. With decay 0 it is the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """
        Args:
            module: its parameters that require gradients now are averaged.
            decay: per step, in [0, 1).
        """
        self.module = module
        self.decay = decay
        self.steps = 0
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad] if decay > 0 else []
        self.averages = {name: p.detach().clone() for name, p in trained}
        self._aside: dict[str, Tensor] = {}

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter]]:
        parameters = dict(self.module.named_parameters())
        return ((name, parameters[name]) for name in self.averages)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step of the optimizer."""
        self.steps += 1
        decay = min(self.decay, (1.0 + self.steps) / (10.0 + self.steps))
        for name, parameter in self._pairs():
            average = self.averages[name].to(parameter.device)
            self.averages[name] = average.lerp_(parameter.detach(), 1.0 - decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averages in the place of the weights, which are kept until `swap_out`."""
        for name, parameter in self._pairs():
            self._aside[name] = parameter.detach().clone()
            # copied in place, which leaves a trace on the parameter: what follows from weights is made anew by it
            parameter.copy_(self.averages[name])

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the weights back, to the last bit."""
        for name, parameter in self._pairs():
            parameter.copy_(self._aside[name])
        self._aside = {}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.averages = state["steps"], dict(state["averages"])
