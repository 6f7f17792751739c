"""For `make docs`: sections of docstrings are told apart by a blank line, which ours do not have."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(Args|Attributes|Raises|Returns|Source):)")


class Sections(griffe.Extension):
    """Puts one before each section; the docstrings themselves stay as they are."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
