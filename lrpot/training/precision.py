"""Whether a backbone can work in mixed precision: tried before any work starts."""

from __future__ import annotations

from lrpot.data.graphs import Graphs
from lrpot.errors import ConfigError
from lrpot.potential import Potential
from lrpot.structure import collate


def check_mixed_precision(model: Potential, structures: Graphs) -> None:
    """Take a step of training with one structure in bfloat16; the weights stay.

    Raises:
        ConfigError: the backbone has an operation that bfloat16 lacks.
    """
    model.short.mixed_precision = True
    try:
        output = model(collate(structures[:1]), create_graph=True, parts={"short"})
        (output["energy"].sum() + output["forces"].square().sum()).backward()
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"training.precision: the backbone cannot work in bf16 ({reason}); choose precision full"
        ) from error
