"""The sections of a report: tables and places of figures, from what a run holds and what its model predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrpot.potential import Potential
from lrpot.report import curves, markup
from lrpot.report.comparison import SHOWN_UNITS, Comparison, Group, errors_of
from lrpot.report.markup import Cell, number
from lrpot.report.parity import TITLES, parity
from lrpot.report.run import Run
from lrpot.report.style import Figure
from lrpot.report.worst import worst

# Lines of a table of formulas; of more, those with the largest errors.
MAX_FORMULAS = 300


@dataclass
class Content:
    """What goes into the page.

    Attributes:
        figures: by name, for the script. views: of the worst structures, by part.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)

    def grid(self, name: str, drawn: Sequence[Figure], *, narrow: bool = False) -> str:
        """Keep figures; gives their places in the page, side by side."""
        named = {f"{name}-{n}": one for n, one in enumerate(drawn)}
        self.figures |= named
        places = "".join(markup.figure(own, one.title, one.caption) for own, one in named.items())
        return f'<div class="grid{" narrow" if narrow else ""}">{places}</div>' if drawn else ""


def headline(comparison: Comparison) -> str:
    """The mean absolute errors in large letters."""
    cards = ""
    for quantity in comparison.quantities:
        unit = SHOWN_UNITS[quantity][1]
        errors = errors_of(comparison.differences(quantity), quantity)
        assert errors is not None
        cards += (
            f'<div class="card" data-quantity="{quantity}"><h3>{TITLES[quantity]}</h3>'
            f'<p class="value"><span class="mae">{number(errors.mae).text}</span> {unit}</p>'
            f'<p class="small">mean absolute error; RMSE {number(errors.rmse).text}, largest '
            f"{number(errors.largest).text} {unit}</p></div>"
        )
    return f'<div class="cards">{cards}</div>'


def stage_table(run: Run, test: Mapping[int, Mapping[str, Any]]) -> str:
    """What each stage brought.

    Args:
        test: errors on the test structures after each stage, by its number, as `Evaluation.errors` gives them.
    """
    found = [entry["validation"] for entry in run.stages] + list(test.values())
    quantities = [quantity for quantity in SHOWN_UNITS if any(quantity in errors for errors in found)]
    columns = ["stage", "epochs", "time (s)"]
    for quantity in quantities:
        label, unit = quantity.replace("_", " "), SHOWN_UNITS[quantity][1]
        columns += [f"{label}, {part} ({unit})" for part in ("validation", "test")[: 2 if test else 1]]
    rows: list[list[Cell | str | int]] = []
    for place, entry in enumerate(run.stages):
        row: list[Cell | str | int] = [_titled(place, entry), entry.get("epochs", "-"), number(entry.get("seconds"))]
        for quantity in quantities:
            row.append(_mae(entry["validation"], quantity))
            if test:
                row.append(_mae(test.get(place, {}), quantity))
        rows.append(row)
    return markup.table(columns, rows, name="stages")


def _titled(place: int, entry: Mapping[str, Any]) -> str:
    """A stage by number and title."""
    return f"{place}: {entry['title']}" if place else str(entry["title"])


def _mae(errors: Mapping[str, Any], quantity: str) -> Cell:
    return number(SHOWN_UNITS[quantity][0] * errors[quantity]["mae"] if quantity in errors else None)


def network_alone(run: Run, comparison: Comparison) -> str:
    """What the network has without the long range, in words; nothing for a model without one."""
    sentences = []
    if run.plan[0].trained == {"short"} and not run.plan[0].charged and len(run.plan) > 1:
        sentences.append("After stage 1 there was the network alone: what it had is in that line of the table.")
    parts = []
    for quantity, along in comparison.along_scale.items():
        factor, unit = SHOWN_UNITS[quantity]
        parts.append(
            f"{quantity} {number(factor * along.rmse(0.0)).text} instead of {number(factor * along.rmse(1.0)).text} "
            f"{unit}"
        )
    if parts:
        sentences.append(
            "Without its charges, and with the offsets of the elements refitted, this model has a root mean square "
            f"error of {', '.join(parts)}. A network that is fitted alone (lrpot fit --kernel none) gives way and does "
            "better."
        )
    return markup.paragraph(" ".join(sentences)) if sentences else ""


def predictions(comparison: Comparison, content: Content, name: str) -> str:
    """Parity plots."""
    return content.grid(f"parity-{name}", [parity(comparison, quantity) for quantity in comparison.quantities])


def errors_by(comparison: Comparison, content: Content, name: str) -> str:
    """Errors by element, by number of atoms, by formula."""
    elements, sizes, formulas = comparison.by_element(), comparison.by_size(), comparison.by_formula()
    figures = [
        curves.bars(groups, quantity, what)
        for groups, quantity, what in (
            (elements, "forces", "element"),
            (sizes, "energy", "number of atoms"),
            (sizes, "forces", "number of atoms"),
        )
        if len(groups) > 1 and quantity in comparison.quantities
    ]
    note = ""
    if len(formulas) > MAX_FORMULAS:
        note = markup.paragraph(f"The {MAX_FORMULAS} of {len(formulas):,} formulas with the largest errors.", "small")
        formulas = sorted(formulas, key=_worst_error, reverse=True)[:MAX_FORMULAS]
    return (
        content.grid(f"groups-{name}", figures)
        + "<h3>By element</h3>"
        + _group_table("element", elements, f"elements-{name}")
        + "<h3>By number of atoms</h3>"
        + _group_table("atoms per structure", sizes, f"sizes-{name}")
        + "<h3>By composition</h3>"
        + note
        + _group_table("formula", formulas, f"formulas-{name}")
    )


def _worst_error(group: Group) -> float:
    errors = group.errors.get("forces") or group.errors.get("energy")
    return errors.largest if errors else -1.0


def _group_table(what: str, groups: list[Group], name: str) -> str:
    quantities = [quantity for quantity in SHOWN_UNITS if any(quantity in group.errors for group in groups)]
    columns = [what, "structures", "atoms"]
    for quantity in quantities:
        label, unit = quantity.replace("_", " "), SHOWN_UNITS[quantity][1]
        columns += [f"{label} MAE ({unit})", f"{label} RMSE ({unit})"]
    rows: list[list[Cell | str | int]] = []
    for place, group in enumerate(groups):
        # ranges of sizes are sorted as numbers, not as words
        first = Cell(group.name, float(place)) if what.startswith("atoms") else group.name
        row: list[Cell | str | int] = [first, group.structures, group.atoms]
        for quantity in quantities:
            errors = group.errors.get(quantity)
            row += [number(None), number(None)] if errors is None else [number(errors.mae), number(errors.rmse)]
        rows.append(row)
    return markup.table(columns, rows, name=name, sortable=True)


def worst_structures(comparison: Comparison, content: Content, name: str) -> str:
    """A table of the worst structures and the place of their 3-D view."""
    view = worst(comparison)
    content.views[name] = view
    if not view["structures"]:
        return markup.paragraph("There are no labels of energies or forces to find the worst structures by.")
    ranks = {kind: {place: rank for rank, place in enumerate(view[kind], 1)} for kind in ("forces", "energy")}
    columns = [
        "worst by force", "worst by energy", "file", "row", "formula", "atoms", "largest force error (meV/Å)",
        "force RMSE (meV/Å)", "energy error (meV/atom)",
    ]  # fmt: skip
    rows: list[list[Cell | str | int]] = []
    for place, found in enumerate(view["structures"]):
        rows.append(
            [
                _rank(ranks["forces"].get(place)),
                _rank(ranks["energy"].get(place)),
                found["file"],
                found["row"],
                found["formula"],
                found["atoms"],
                number(found["largest_force_error"]),
                number(found["force_rmse"]),
                number(found["energy_error"], sign="+"),
            ]
        )
    attributes = [{"structure": place} for place in range(len(rows))]
    return f'<div class="viewer" data-view="{markup.text(name)}"></div>' + markup.table(
        columns, rows, name=f"worst-{name}", sortable=True, attributes=attributes
    )


def _rank(rank: int | None) -> Cell:
    return Cell("-") if rank is None else Cell(str(rank), float(rank))


def course(run: Run, content: Content) -> str:
    """Learning curves, and which colour is which stage."""
    figures = curves.learning_curves(run) if len(run.stages) > 1 or run.running else []
    if not figures:
        return markup.paragraph("No stage has finished an epoch yet.")
    names = [trace["name"] for trace in figures[0].data]
    colours = [trace["line"]["color"] for trace in figures[0].data]
    key = "".join(
        f'<li><svg width="26" height="10" aria-hidden="true"><line x1="0" y1="5" x2="26" y2="5" stroke="{colour}" '
        f'stroke-width="3"/></svg> stage {markup.text(title)}</li>'
        for title, colour in zip(names, colours, strict=True)
    )
    return f'<ul class="key">{key}</ul>' + content.grid("course", figures)


def long_range(run: Run, model: Potential, content: Content) -> str:
    """The kernel, and what each stage made of the charges."""
    if model.long is None:
        return markup.paragraph("This model has no long-range part (model.kernel.form = none).")
    symbols = list(dict.fromkeys(symbol for entry in run.stages for symbol in entry["charges"]))
    rows: list[list[Cell | str | int]] = [
        [_titled(place, entry), *(_charge(entry["charges"].get(symbol)) for symbol in symbols)]
        for place, entry in enumerate(run.stages)
    ]
    return (
        content.grid("kernel", curves.kernel(model.long))
        + "<h3>Charges after each stage</h3>"
        + markup.table(["stage", *(f"{symbol} (e)" for symbol in symbols)], rows, name="stage-charges")
    )


def _charge(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:+.4f}", value)


def charges(comparison: Comparison, content: Content, name: str) -> str:
    """Charges by element, how they are distributed, and how well the data determine them."""
    by_element = comparison.evaluation.charges_by_element()
    if not by_element:
        return ""
    rows: list[list[Cell | str | int]] = [
        [symbol, *(_charge(values[kind]) for kind in ("mean", "min", "max")), number(values["spread"])]
        for symbol, values in by_element.items()
    ]
    share = comparison.evaluation.long_range()
    histograms = curves.charge_histograms(comparison)
    said = (
        f"Long range: {share['energy_long']:.3g} eV/atom beside {share['energy_network']:.3g} eV/atom of the network "
        f"(mean magnitudes), a share of {share['share']:.0%}."
    )
    if not histograms:
        said += " The charges of each element are all the same, so there is no histogram of them."
    return (
        f"<h3>Charges in the structures {markup.text(comparison.part.described)}</h3>"
        + markup.table(["element", "mean (e)", "least (e)", "largest (e)", "spread (e)"], rows, name=f"charges-{name}")
        + markup.paragraph(said)
        + content.grid(f"charges-{name}", histograms, narrow=True)
        + content.grid(f"scale-{name}", curves.charge_scale(comparison.along_scale))
    )
