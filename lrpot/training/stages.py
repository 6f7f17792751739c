"""What each stage of a fit sees and what it changes.

Source: Yu et al. 2022, the three-step strategy; the schedules other than "published" are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrpot.config import FitConfig


@dataclass(frozen=True)
class Stage:
    """One stage of a fit.

    Attributes:
        title: for people.
        trained: the parts of the potential that are fitted: "short", "long".
        frozen: the parts that are present but stay as they are.
        baseline: whether offsets and scale of the short-range part are fitted anew before it; only while its
            readout is still zero.
        charged: whether the charges are set to their starting values before it; they are zero until then, so that
            the model after every stage is whole.
        surroundings: whether the charges may learn from the features of their atoms. Not before the network is
            fitted: frozen charges would change with it.
    """

    title: str
    trained: frozenset[str]
    frozen: frozenset[str] = frozenset()
    baseline: bool = False
    charged: bool = False
    surroundings: bool = True

    @property
    def evaluated(self) -> frozenset[str]:
        """The parts that are computed in every step; the frozen ones are computed once."""
        return self.trained | {"offset"}


def decided(config: FitConfig, done: Sequence[Mapping[str, Any]]) -> FitConfig:
    """The settings with the schedule that the data decided, where it was left to them.

    Charges that the forces of the data do not determine are a guess. Frozen beside the network from the first stage
    on, a wrong guess is a long range that no network with a cutoff can take back; so the network comes first.

    Args:
        done: the entries of the start and of all stages so far.
    """
    if not done or not done[0].get("guessed") or config.training.schedule != "auto":
        return config
    training = config.training.model_copy(update={"schedule": "published"})
    return config.model_copy(update={"training": training})


def plan(config: FitConfig) -> list[Stage]:
    """The stages of a fit, in order, once its schedule is decided."""
    short, long = frozenset({"short"}), frozenset({"long"})
    if config.training.finetune.model is not None:
        return _from_a_model(config)
    if config.model.kernel.form == "none":
        return [Stage("real space", short, baseline=True)]
    alone = Stage("reciprocal space, network still zero", long, short, baseline=True, charged=True, surroundings=False)
    if config.schedule == "long-range-only":
        return [alone]
    both = Stage("both", short | long)
    if config.training.stages == 1:
        return [Stage("all at once", short | long, baseline=True, charged=True)]
    if config.schedule == "published":
        # charges that are equilibrated vanish only in neutral structures
        absent = long if config.model.charges.kind == "equilibration" else frozenset()
        return [
            Stage("real space, no long range", short, frozen=absent, baseline=True),
            Stage("reciprocal space, real part frozen", long, frozen=short, charged=True),
            both,
        ]
    if config.schedule == "physical-start":
        return [
            Stage("real space, long range frozen", short, frozen=long, baseline=True, charged=True),
            Stage("reciprocal space, real part frozen", long, frozen=short),
            both,
        ]
    return [
        alone,
        Stage("real space, long range frozen", short, frozen=long, baseline=True),
        both,
    ]


def _from_a_model(config: FitConfig) -> list[Stage]:
    """The stages of a fit whose network and charges are there from the beginning."""
    short, long = frozenset({"short"}), frozenset({"long"})
    if config.model.kernel.form == "none":
        return [Stage("fine-tuning", short)]
    if config.training.stages == 1:
        return [Stage("fine-tuning", short | long)]
    parts = [
        Stage("real space, long range frozen", short, frozen=long),
        Stage("reciprocal space, real part frozen", long, frozen=short),
    ]
    return [*(reversed(parts) if config.schedule == "physics-first" else parts), Stage("both", short | long)]
