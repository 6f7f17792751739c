"""The version of lrpot; the only place where it is written."""

__version__ = "0.1.0"
"""As `lrpot --version` prints it."""
