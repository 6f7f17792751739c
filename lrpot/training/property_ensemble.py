"""What several property models are together: their mean, calibrated uncertainties, errors and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrpot.calibration import spread_factors
from lrpot.config import FitConfig
from lrpot.console import Console
from lrpot.files import write_text
from lrpot.model_file import save
from lrpot.properties.evaluation import errors_text, evaluate_properties, gates_text
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.properties.tables import errors_table, save_predictions
from lrpot.training.dataset import FitData
from lrpot.training.ensemble import Joined, member_seeds


def join_properties(
    members: list[PropertyModel], out: Path, config: FitConfig, data: FitData, console: Console
) -> Joined:
    """Calibrate an ensemble of property models, and write it with its errors and pictures."""
    model = PropertyEnsemble(members).eval()
    on_valid = evaluate_properties(model, data.valid)
    model.factors = spread_factors(on_valid, len(members))
    path = save(model, out / "model.pt")
    entries: list[dict[str, Any]] = [
        {"title": f"member-{n}", "seed": seed, "validation": evaluate_properties(member, data.valid).errors()}
        for n, (member, seed) in enumerate(zip(members, member_seeds(config), strict=True), 1)
    ]
    entries.append({"title": "ensemble", "validation": on_valid.errors()})
    for entry in entries:
        console.line(f"{entry['title']}: validation {errors_text(entry['validation'], model.targets)}")
    for name, factor in model.factors.items():
        console.line(f"{name}: spread of the members x {factor:.2f} by {len(data.valid)} validation structures")
    where, shown = ("test", data.test) if data.test else ("validation", data.valid)
    found = evaluate_properties(model, shown)
    console.table(f"errors, {len(shown)} {where} structures", *errors_table(found))
    test = found.errors() if data.test else None
    if found.experts:
        console.line(gates_text(found))
    record = {"stages": entries, "test": test, "calibration": model.factors, "gates": found.gate_usage()}
    table = save_predictions(found, shown.rows.tolist(), shown.names.tolist(), out / f"{where}.csv")
    from lrpot.properties.pictures import draw  # matplotlib takes a second

    pictures = draw(found, out)
    write_text(out / "results.json", json.dumps(record, indent=1))
    for file in (path, table, *pictures):
        console.line(f"wrote {file}")
    return model, path, entries, test
