"""The arguments of a class as a section of settings."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model
from torch import nn

from lrpot.errors import ConfigError


def section_of(name: str, backbone: type[nn.Module]) -> type[BaseModel]:
    """A section with `name` and one setting for each argument of the class; unknown settings are refused.

    Args:
        name: of the backbone. backbone: its class.
    Raises:
        ConfigError: an argument without a type, of a type that no settings file can hold, or no argument `cutoff`.
    """
    where = f"backbone {name!r}: {backbone.__name__}.__init__"
    try:
        hints = typing.get_type_hints(backbone.__init__)
    except NameError as error:
        raise ConfigError(f"{where}: {error}; give its arguments types such as int and float") from error
    kind: Any = Literal[name]
    fields: dict[str, Any] = {"name": (kind, name)}
    parameters = inspect.signature(backbone).parameters
    if "cutoff" not in parameters or "name" in parameters:
        raise ConfigError(f"{where} needs an argument cutoff: float (A), and none called name")
    for argument, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or argument not in hints:
            raise ConfigError(f"{where}: argument {argument} has no type; write it as {argument}: int, or leave it out")
        fields[argument] = (hints[argument], ... if parameter.default is parameter.empty else parameter.default)
    try:
        return create_model(backbone.__name__, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
    except PydanticUserError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {reason} use int, float, str, bool or lists of them") from error
