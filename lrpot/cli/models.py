"""`lrpot models`: the models that come with lrpot, and their cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.shipped import Card, Errors

LABELS = ("energy", "forces", "stress")


def models(
    name: Annotated[
        str | None, typer.Argument(help="A model whose card to print.", show_default="a list of all")
    ] = None,
) -> None:
    """List the models that come with lrpot, or print the card of one: data, method, range of use, errors, licence.

    Wherever a model file is asked for, the name of one of them will do, such as `lrpot md nacl.pt crystal.cif`; a file
    of that name in the current directory goes first.
    """
    from lrpot.console import Console
    from lrpot.shipped import find_model, read_card, shipped_models

    console = Console()
    if name is not None:
        _show(console, read_card(name))
        return
    rows = []
    for known in shipped_models():
        card = read_card(known)
        errors = next(iter(card.errors.values()))
        held_back = [_milli(errors, label, "mae") for label in ("energy", "forces")]
        size = f"{find_model(known).stat().st_size / 1e6:.2f} MB"
        rows.append([f"{known}.pt", " ".join(card.elements), size, *held_back, card.licence])
    columns = ["model", "elements", "size", "E (meV/atom)", "F (meV/A)", "licence"]
    console.table("models that come with lrpot", columns, rows)
    console.line("E and F: mean absolute errors on held-back structures; lrpot models NAME prints a card")


def _show(console: Console, card: Card) -> None:
    use = card.range
    (coldest, hottest), (lowest, highest) = use.temperature, use.pressure
    lines = [
        ("model", card.title),
        ("elements", ", ".join(card.elements)),
        ("labels", card.method),
        ("why these", card.why),
        ("structures", card.data),
        ("for", use.phases),
        ("temperature", f"{coldest:g} to {hottest:g} K"),
        ("pressure", f"{lowest:g} to {highest:g} GPa"),
        ("cells", use.cells),
        ("not for", use.not_for),
        ("licence", card.licence),
        ("cite", card.citation),
        ("sha256", card.sha256),
    ]
    for name, value in lines:
        console.line(f"{name + ':':15s} {value}")
    rows = []
    for test, errors in card.errors.items():
        found = [_milli(errors, label, "mae", "rmse") for label in LABELS]
        rows.append([test, str(errors.n_structures), *found])
    header = ["MAE / RMSE", "structures", "E (meV/atom)", "F (meV/A)", "stress (meV/A^3)"]
    console.table("errors on structures that the fit did not see", header, rows)
    console.line("made by")
    for command in card.commands:
        console.line(f"  {command}")


def _milli(errors: Errors, label: str, *kinds: str) -> str:
    """Errors of those kinds in thousandths of their unit; "-" for a label that no structure has."""
    found = getattr(errors, label)
    return "-" if found is None else " / ".join(f"{1e3 * getattr(found, kind):.3g}" for kind in kinds)
