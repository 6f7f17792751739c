"""What the arguments of encoders must be: forms that are known, heads that share a width."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lrpot.errors import ConfigError

INVARIANT = "invariant"


def check_variant(encoder: str, variant: str, known: Sequence[str]) -> None:
    """Refuse a form that is not known; warn of one that changes with how a crystal is written down.

    Args:
        encoder: its name, for messages. known: the forms that it has.
    Raises:
        ConfigError: none of these.
    """
    if variant not in known:
        raise ConfigError(f"{encoder}: variant = {variant!r}; choose one of {', '.join(known)}")
    if variant != INVARIANT:
        warnings.warn(
            f"{encoder}: variant {variant} is for comparison with the paper; it is not continuous, or changes with the "
            f"choice of the cell; use {INVARIANT}",
            stacklevel=3,
        )


def check_heads(encoder: str, features: int, heads: int) -> None:
    """Refuse heads that cannot share the width evenly.

    Args:
        encoder: its name, for messages. features: the width. heads: of its attention.
    Raises:
        ConfigError: the width is no multiple of their number.
    """
    if features % heads:
        raise ConfigError(f"{encoder}: features = {features} is no multiple of heads = {heads}; change one of them")
