"""fit.log: what a fit says to a person, warnings above all, with times; kept also where nobody saw it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lrpot.errors import LrpotError, OutputError
from lrpot.files import write_text

# In the directory of the run.
LOG = "fit.log"

# A log that cannot be written is no reason to end a fit; what cannot be done without has its own errors.
_HARMLESS = (OSError, OutputError)


class RunLog:
    """Lines wait here until there is a directory to write them to; from then on the file is whole after each."""

    def __init__(self) -> None:
        self.text = ""
        self.path: Path | None = None

    def add(self, text: str) -> None:
        """One message; further lines of it, as of tables, are indented."""
        time = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        first, *rest = text.splitlines() or [""]
        lines = [f"{time}  {first}", *(f"  {line}" for line in rest)]
        self.text += "\n".join(line.rstrip() for line in lines) + "\n"
        self._write()

    @contextmanager
    def written(self, path: Path) -> Iterator[None]:
        """Write to `path`, behind what stands there of earlier sessions; errors that end the fit are its last line."""
        with suppress(*_HARMLESS):
            if path.exists():
                self.text = path.read_text(encoding="utf-8", errors="replace") + self.text
            self.path = path  # what cannot be read is not written over
        self._write()
        try:
            yield
        except Exception as error:
            self.add(f"stopped: {error if isinstance(error, LrpotError) else repr(error)}")
            raise
        finally:
            self.path = None

    def _write(self) -> None:
        if self.path is not None:
            with suppress(*_HARMLESS):
                write_text(self.path, self.text)
