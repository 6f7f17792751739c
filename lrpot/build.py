"""Configuration -> potential with fresh weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lrpot.backbones import BACKBONES
from lrpot.charges import CHARGES
from lrpot.config import BackboneConfig, KernelConfig, ModelConfig
from lrpot.errors import ConfigError
from lrpot.kspace import FCN, CoulombComplement, FreeKernel, GaussianCoulomb, LearnedKernel, ReciprocalSum, splitting
from lrpot.potential import LongRange, Potential, ShortRange
from lrpot.structure import MAX_ATOMIC_NUMBER

# Above this, what is left out of the Coulomb sum is larger than a good network's error.
POOR_SUM = 1e-3

# The pair term of the complement is always tapered, from here at the latest (a fraction of the cutoff).
REAL_ONSET = 0.9


def build_potential(config: ModelConfig, elements: Iterable[int]) -> Potential:
    """A potential whose network is random, whose readout is zero and whose charges are zero.

    Args:
        config: what it consists of.
        elements: atomic numbers that it shall know.
    Raises:
        ConfigError: cutoffs in real and reciprocal space that do not belong together.
    """
    elements = sorted({int(z) for z in elements})
    settings = config.backbone.model_dump(exclude={"name"})
    short = ShortRange(BACKBONES[config.backbone.name](**settings), MAX_ATOMIC_NUMBER + 1)
    if config.kernel.form == "none":
        return Potential(short, None, elements)
    charges = CHARGES[config.charges.kind](
        elements,
        features=int(short.backbone.features),  # type: ignore[arg-type]
        channels=config.charges.channels,
        hidden=config.charges.hidden,
        neutrality=config.charges.neutrality,
    )
    reciprocal, complement = build_reciprocal(config.kernel, config.backbone, config.charges.kind)
    return Potential(short, LongRange(charges, reciprocal, complement), elements)


def build_reciprocal(
    kernel: KernelConfig, backbone: BackboneConfig, charges: str = "embedding"
) -> tuple[ReciprocalSum, CoulombComplement | None]:
    """The reciprocal sum and, for a Coulomb kernel, its real-space half.

    Equilibrated charges need a kernel that is nowhere negative. Without a complement, the energy of each charge in its
    own field stays in the sum; for charges that change with the surroundings it is taken off.
    """
    positive = charges == "equilibration"
    k_cutoff = resolve_k_cutoff(kernel, backbone.cutoff)
    fcn = FCN(k_cutoff, kernel.basis, kernel.hidden, kernel.layers).double()
    settings: dict[str, Any] = {
        "engine": kernel.engine,
        "tolerance": kernel.engine_tolerance,
        "envelope": kernel.envelope,
    }
    bare = {**settings, "subtract_self": charges == "environment"}
    if kernel.form == "free":
        return ReciprocalSum(FreeKernel(fcn, positive=positive), k_cutoff, **bare), None
    onset = min(kernel.envelope, REAL_ONSET)
    prior = GaussianCoulomb(_sigma(kernel, backbone.cutoff, k_cutoff, onset))
    learned = LearnedKernel(prior, fcn, positive=positive)
    if kernel.complement == "none":
        return ReciprocalSum(learned, k_cutoff, **bare), None
    reciprocal = ReciprocalSum(learned, k_cutoff, **settings)
    return reciprocal, CoulombComplement(prior, backbone.cutoff, onset=onset)


def _sigma(kernel: KernelConfig, cutoff: float, k_cutoff: float, onset: float) -> float:
    """Width of the Gaussian charges, A.

    Args:
        cutoff: A. k_cutoff: 1/A. onset: fraction of both at which the tapers begin.
    Raises:
        ConfigError: the tapers leave out too much of the Coulomb sum.
    """
    even, left_out = splitting(cutoff, k_cutoff)
    sigma = even if kernel.sigma == "auto" else kernel.sigma
    # where the tapers begin, the exponents are onset^2 of what they are at the cutoffs
    deep_enough = -math.log(POOR_SUM) / onset**2
    least, most = math.sqrt(2.0 * deep_enough) / k_cutoff, cutoff / math.sqrt(2.0 * deep_enough)
    if sigma >= least and (sigma <= most or kernel.complement == "none"):
        return sigma
    if kernel.sigma == "auto":
        raise ConfigError(
            f"model.kernel.k_cutoff = {k_cutoff:g} 1/A, envelope = {kernel.envelope:g} and model.backbone.cutoff = "
            f"{cutoff:g} A leave out {left_out ** (onset**2):.0e} of the Coulomb sum; raise k_cutoff to "
            f"{2.0 * deep_enough / cutoff:.1f} or more"
        )
    upper = f" to {most:.2f}" if kernel.complement == "coulomb" else " A or more"
    raise ConfigError(
        f"model.kernel.sigma = {sigma:g} A leaves out more than {POOR_SUM:.0e} of the Coulomb sum beyond k_cutoff = "
        f"{k_cutoff:g} 1/A or model.backbone.cutoff = {cutoff:g} A; choose {least:.2f}{upper}, or auto"
    )


def resolve_k_cutoff(kernel: KernelConfig, cutoff: float) -> float:
    """k_cutoff in 1/A; "auto" is where exp(-cutoff k_cutoff / 2) falls to the tolerance (see `splitting`)."""
    if kernel.k_cutoff == "auto":
        return -2.0 * math.log(kernel.tolerance) / cutoff
    return float(kernel.k_cutoff)
