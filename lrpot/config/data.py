"""Settings of the structures: where they come from, how they are divided."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lrpot.config.section import Section

# A file of row numbers is told from a misspelt word by its ending.
RowFile = Annotated[str, Field(pattern=r"\.json$")]

# One file or pattern, or several.
Files = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


def _off(value: Any) -> Any:
    """YAML reads off as false."""
    return "off" if value is False else value


class DataConfig(Section):
    """Where the structures come from and how they are divided."""

    train: Files | None = Field(
        None,
        description="Labelled structures: a file in any format that ASE reads, HDF5 shards, id_prop.csv beside a "
        "folder of files, JSON of MatBench, JARVIS-DFT or the Materials Project, a pattern such as shards/*.h5, or a "
        "list of these.",
    )
    valid: Files | None = Field(None, description="Validation files; without one, a part of `train` is held back.")
    test: Files | None = Field(None, description="Test files, used only for the final table.")
    valid_fraction: float = Field(0.1, gt=0, lt=1, description="Part of `train` held back for validation.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Part of `train` held back for testing.")
    split: Literal["random", "formula", "structure"] | RowFile = Field(
        "random",
        description="random: rows are drawn; formula: rows of one reduced formula stay together; structure (of "
        "properties, whose default it is): rows of one id, or of one formula and volume, do; or a .json file of "
        "rows by part, {train: [...], valid: [...], test: [...]}, such as split.json of another run. Rows count from 0 "
        "and through all files.",
    )
    split_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the rows that are drawn; none: training.seed. Fits that share it share the split.",
    )
    folds: int | None = Field(
        None, ge=2, description="Cross-validation: what is not held back for testing is cut into so many parts."
    )
    fold: int = Field(0, ge=0, description="The part that validates, counted from 0; the others train.")
    skip_bad_rows: bool = Field(False, description="Leave out rows that cannot be used, and count them.")
    cache: Annotated[str, Field(min_length=1), BeforeValidator(_off)] = Field(
        "auto",
        description="Where graphs are kept for other runs: a folder; off: nowhere; auto: those of files above 64 MB in "
        "the folder LRPOT_CACHE of the environment, or ~/.cache/lrpot.",
    )
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Processes that build the graphs of a file; auto: one for each core if it is above 64 MB."
    )

    @model_validator(mode="after")
    def _some_left(self) -> DataConfig:
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction leave nothing to train on; lower them")
        if self.folds is None and self.fold:
            raise ValueError(f"fold = {self.fold} needs folds; set data.folds, such as 5")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold} is none of {self.folds} folds; they count from 0")
        if self.folds is not None and self.valid is not None:
            raise ValueError("folds make their own validation part, but valid names a file; leave one of them out")
        if self.folds is not None and self.split.endswith(".json"):
            raise ValueError("split lists the rows of every part, so there are no folds; leave one of them out")
        return self
