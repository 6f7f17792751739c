"""What a fit says: errors, charges and warnings in words and tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ase.data import chemical_symbols

from lrpot.config import FitConfig
from lrpot.evaluation import QUANTITIES, UNITS, Evaluation
from lrpot.potential import Potential
from lrpot.training.stages import decided, plan

# Charges below this (e), where they started larger, have been driven out by the network.
COLLAPSED = 0.1


def charges_of(model: Potential, evaluation: Evaluation) -> dict[str, float]:
    """Charges in e by symbol; empty without a long-range part. Where they depend on the surroundings, the mean over
    the structures that were evaluated."""
    if model.long is None:
        return {}
    if model.long.charges.sees_surroundings:
        return {symbol: values["mean"] for symbol, values in evaluation.charges_by_element().items()}
    return {chemical_symbols[z]: q for z, q in model.long.charges.by_element().items()}


def charge_sizes(evaluation: Evaluation) -> dict[str, float]:
    """Root mean square charge in e by symbol: charges of both signs whose mean is zero have a size all the same."""
    found = evaluation.charges_by_element()
    return {symbol: math.hypot(values["mean"], values["spread"]) for symbol, values in found.items()}


def charges_text(charges: Mapping[Any, float]) -> str:
    """Charges by symbol or atomic number -> "Na +0.65, ... e"."""
    names = {z if isinstance(z, str) else chemical_symbols[z]: q for z, q in charges.items()}
    return ", ".join(f"{symbol} {q:+.5f}" for symbol, q in names.items()) + " e"


def charge_warnings(done: list[dict[str, Any]], config: FitConfig) -> list[str]:
    """What to say about charges of any kind that the fit has driven to zero.

    Args:
        done: the entries of the start and of all stages so far, with "stage" and "charge_sizes", e.
    """
    # a run that an earlier version began has no sizes of its start
    before, now = done[0].get("charge_sizes"), done[-1]["charge_sizes"]
    fitted = done[-1]["stage"] > 0 and "long" in plan(decided(config, done))[done[-1]["stage"] - 1].trained
    if not before or not now or not fitted or max(now.values()) >= COLLAPSED or max(before.values()) < COLLAPSED:
        return []
    sizes = ", ".join(f"{symbol} {size:.5f}" for symbol, size in now.items())
    return [
        f"the charges have collapsed to zero (root mean square {sizes} e; they started at up to "
        f"{max(before.values()):.2f} e): {_cause(config)}"
    ]


def idle_warnings(done: list[dict[str, Any]], config: FitConfig) -> list[str]:
    """What to say after the last stage, where the network had better errors before it had a long range.

    Args:
        done: the entries of the start and of all stages so far, with "validation".
    """
    stages = plan(decided(config, done))
    alone = len(stages) == 3 and stages[0].trained == {"short"} and not stages[0].charged
    if not alone or len(done) <= len(stages):
        return []
    before, now = (
        {name: entry["validation"][name] for name in ("energy", "forces") if name in entry["validation"]}
        for entry in (done[1], done[-1])
    )
    if any(now[name]["mae"] < before[name]["mae"] for name in now):
        return []
    return [
        f"the long range has brought nothing: on the validation rows the network had {errors_text(before)} before it, "
        f"and has {errors_text(now)} with it; stages/1.pt is that network, and lrpot fit --kernel none gives it all "
        "epochs"
    ]


def _cause(config: FitConfig) -> str:
    if config.training.stages == 3 and config.schedule == "published":
        return (
            "the network had taken up the long range before they were fitted; use --schedule physical-start or "
            "physics-first, so that it fits only what they leave"
        )
    return (
        "energies and forces of these structures do not hold them against the network; add larger cells or molecules "
        "at larger distances, or labels of charges, dipoles or Born charges (training.charge_weight, dipole_weight, "
        "born_weight)"
    )


def progress_note(history: list[dict[str, float]]) -> str:
    """The last epoch, beside a progress bar: validation loss, mean absolute errors, learning rate."""
    last = history[-1]
    errors = [f"{name} {_small(last[name], UNITS[name])}" for name in QUANTITIES if name in last]
    return ", ".join([f"loss {last['loss']:.2e}", *errors, f"lr {last['lr']:.1e}"])


def _small(value: float, unit: str) -> str:
    """In thousandths, where the unit is one of energies."""
    return f"{1e3 * value:.3g} m{unit}" if unit.startswith("eV") else f"{value:.3g} {unit}"


def errors_text(errors: Mapping[str, Any]) -> str:
    """Mean absolute errors in one line."""
    present = [name for name in QUANTITIES if name in errors]
    return ", ".join(f"{name} {errors[name]['mae']:.3g} {errors[name]['unit']}" for name in present)


def stage_table(
    rows: list[tuple[str, Mapping[str, Any], Mapping[str, float]]],
) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the table of stages: title, errors and charges of each, and what it improved."""
    labels = [label for label in QUANTITIES if label in rows[0][1]]
    columns = ["stage", *(f"{label} ({rows[0][1][label]['unit']})" for label in labels), "charges (e)", "improved"]
    lines = []
    before: Mapping[str, Any] | None = None
    for title, errors, charges in rows:
        better = [
            f"{label} {before[label]['mae'] / max(errors[label]['mae'], 1e-300):.2f}x"
            for label in labels
            if before is not None and errors[label]["mae"] < 0.99 * before[label]["mae"]
        ]
        improved = "" if before is None else ", ".join(better) or "nothing"
        numbers = [f"{errors[label]['mae']:.3g}" for label in labels]
        lines.append([title, *numbers, ", ".join(f"{s} {q:+.5f}" for s, q in charges.items()), improved])
        before = errors
    return columns, lines


def csv_text(records: Sequence[Mapping[str, float]]) -> str:
    """Records as CSV, in the order of the fullest; a field that a record lacks stays empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in sorted(records, key=len, reverse=True) for name in record))
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
