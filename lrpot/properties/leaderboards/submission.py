"""What submissions share: what a user must tell, and the versions of packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from lrpot._version import __version__
from lrpot.errors import ConfigError


def check_told(where: str, fields: Mapping[str, object]) -> None:
    """
    Args:
        where: the submission. fields: what a user must tell, by name.
    Raises:
        ConfigError: some of it is empty; all of that is named.
    """
    missing = [name for name, value in fields.items() if not value or (isinstance(value, str) and not value.strip())]
    if missing:
        raise ConfigError(f"{where} needs {', '.join(missing)}; give what is missing")


def requirements() -> list[str]:
    """lrpot and what its numbers depend on, with the versions of this machine, as pip takes them."""
    versions = {name: version(name) for name in ("torch", "torch-geometric", "numpy", "ase")}
    # no index has what a build adds to its version, such as +cpu
    return [f"lrpot=={__version__}", *(f"{name}=={number.partition('+')[0]}" for name, number in versions.items())]
