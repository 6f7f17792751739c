"""HTML of a report from plain values: every text is escaped here and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and the number that it is sorted by; None where there is no number."""

    text: str
    key: float | None = None


def number(value: float | None, digits: int = 3, sign: str = "") -> Cell:
    """A number with so many significant digits."""
    if value is None:
        return Cell("-")
    large = abs(value) >= 10.0**digits
    shown = f"{value:{sign},.0f}" if large and abs(value) < 1e9 else f"{value:{sign}#.{digits}g}".removesuffix(".")
    return Cell(shown, value)


def text(value: object) -> str:
    """Anything as text in HTML."""
    return html.escape(str(value))


def paragraph(value: object, kind: str = "") -> str:
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def bullets(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(one[:1].upper() + one[1:])}</li>" for one in sentences) + "</ul>"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | str | int]],
    *,
    name: str = "",
    sortable: bool = False,
    attributes: Sequence[Mapping[str, object]] = (),
) -> str:
    """A table; with `sortable`, its headings are buttons that sort.

    Args:
        rows: a str is text, an int or a `Cell` with a key is a number. attributes: data-* of each row.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    is_number = [any(cell.key is not None for cell in column) for column in zip(*cells, strict=True)]
    head = "".join(
        f'<th scope="col"{_numeric(numeric)}>'
        + (f'<button type="button" class="sort">{_heading(column)}</button>' if sortable else _heading(column))
        + "</th>"
        for column, numeric in zip(columns, is_number or [False] * len(columns), strict=True)
    )
    body = ""
    for place, row in enumerate(cells):
        own = attributes[place] if place < len(attributes) else {}
        data = "".join(f' data-{key}="{text(value)}"' for key, value in own.items())
        body += f"<tr{data}>"
        for cell, numeric in zip(row, is_number, strict=True):
            key = "" if cell.key is None else f' data-key="{cell.key!r}"'
            body += f"<td{_numeric(numeric)}{key}>{text(cell.text)}</td>"
        body += "</tr>"
    own_name = f' id="{text(name)}"' if name else ""
    return f'<div class="scroll"><table{own_name}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(name: str, title: str, caption: str) -> str:
    """The place of a figure; the script draws it by its name."""
    label = f"{title}: {caption}" if caption else title
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="plot"><h3>{text(title)}</h3><div class="canvas" data-figure="{text(name)}" role="img" '
        f'aria-label="{text(label)}"></div>{below}</figure>'
    )


def as_script_data(value: Any) -> str:
    """JSON that no text in it can leave."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_hash(script: str) -> str:
    """What a content security policy names a script by."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _heading(column: str) -> str:
    """A heading whose unit, in brackets at its end, stays in one line."""
    return re.sub(r"(\([^()]*\))$", r'<span class="unit">\1</span>', text(column))


def _cell(value: Cell | str | int) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(value) if isinstance(value, str) else Cell(f"{value:,}", float(value))


def _numeric(numeric: bool) -> str:
    return ' class="number"' if numeric else ""
