"""Options that several commands share, worded once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class DType(StrEnum):
    float32 = "float32"
    float64 = "float64"


Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...", show_default=True)]
Precision = Annotated[DType, typer.Option("--dtype", help="Precision of the network.", show_default=True)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", show_default=True)]
