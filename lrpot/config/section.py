"""What every section of the settings is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Refuses names that it does not have and values that are impossible or not finite, also when one is assigned."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)
