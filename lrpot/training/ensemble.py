"""The fit of several models to the same structures, one after the other, and what they are together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrpot.calibration import calibrate, few_members, few_structures, quality, quality_record, quality_table
from lrpot.config import FitConfig, make_config
from lrpot.console import Console
from lrpot.ensemble import Ensemble
from lrpot.errors import DataError, Interrupted
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.files import run_directory, write_text
from lrpot.model_file import save
from lrpot.potential import Potential
from lrpot.training.dataset import FitData
from lrpot.training.finetune import START
from lrpot.training.summary import errors_text, stage_table

CONFIG = "config.yaml"

# Fits one model: directory of its run, its settings, its structures, where to tell.
FitMember = Callable[[Path, FitConfig, FitData, Console], Any]

# What a fit leaves: model, path, entries of members, errors of the test; see `lrpot.training.fit.FitResult`.
Joined = tuple[Any, Path, list[dict[str, Any]], dict[str, Any] | None]

# Makes one model of the members: the members, directory, settings, structures, where to tell.
Join = Callable[[list[Any], Path, FitConfig, FitData, Console], Joined]


def fit_ensemble(
    out: Path,
    config: FitConfig,
    data: FitData,
    console: Console,
    start: Potential | None,
    fit_member: FitMember,
    join: Join,
) -> Joined:
    """Fit the members, or go on with them, each in an ordinary run directory below `out`; join and calibrate them.

    The members differ in the seeds of weights and order. They share the split: the validation rows must be unknown to
    all of them, for the uncertainties are calibrated there.

    Args:
        start: the model that all members start from, if any.
    Returns:
        model, path, stages, test: as in `FitResult`; of `stages` one entry per member and one of the ensemble.
    """
    n = config.training.ensemble
    for doubt in (*few_members(n), *few_structures(len(data.valid), n)):  # said before the work
        console.warn(doubt)
    runs = {
        out / f"member-{number}": member_config(config, seed) for number, seed in enumerate(member_seeds(config), 1)
    }
    # all at first, so that members can be fitted by themselves too: lrpot fit --resume --out run/member-2
    for folder, own in runs.items():
        if not (folder / CONFIG).exists():
            with run_directory(folder, resume=True, overwrite=False):
                if start is not None:
                    save(start, folder / START)  # before the settings, without which there is nothing to resume
                write_text(folder / CONFIG, own.to_yaml())
    members = []
    for folder, own in runs.items():
        console.line(f"{folder.name} of {n}, seed {own.training.seed}")
        with run_directory(folder, resume=True, overwrite=False):
            try:
                members.append(fit_member(folder, own, data, console))
            except Interrupted as error:
                raise Interrupted(str(error).replace(str(folder), str(out))) from None
    return join(members, out, config, data, console)


def member_seeds(config: FitConfig) -> list[int]:
    return [config.training.seed + n for n in range(config.training.ensemble)]


def member_config(config: FitConfig, seed: int) -> FitConfig:
    """The settings of a single fit that is a member: its seed, and the split of all."""
    split_seed = config.training.seed if config.data.split_seed is None else config.data.split_seed
    return make_config(config, {"training.ensemble": 1, "training.seed": seed, "data.split_seed": split_seed})


def join_potentials(members: list[Potential], out: Path, config: FitConfig, data: FitData, console: Console) -> Joined:
    """Calibrate an ensemble of potentials, and write it with its errors and pictures."""
    from lrpot import plots  # matplotlib takes a second

    model = Ensemble(members).eval()
    try:
        calibrate(model, data.valid)
    except DataError as error:  # members without any spread are a result too
        console.warn(str(error))
    path = save(model, out / "model.pt")
    titles = [f"member-{n}" for n in range(1, len(model.members) + 1)] + ["ensemble"]
    evaluations = [evaluate_structures(one, data.valid) for one in (*model.members, model)]
    table: list[tuple[str, Mapping[str, Any], Mapping[str, float]]] = [
        (title, e.errors(), _mean_charges(e)) for title, e in zip(titles, evaluations, strict=True)
    ]
    entries: list[dict[str, Any]] = [{"title": t, "validation": e, "charges": q} for t, e, q in table]
    for entry, seed in zip(entries, member_seeds(config), strict=False):
        entry["seed"] = seed
    columns, lines = stage_table(table)
    # no stages, and improvement from one member to the next means nothing
    console.table("validation errors (mean absolute)", ["model", *columns[1:-1]], [line[:-1] for line in lines])
    shown = evaluate_structures(model, data.test) if data.test else evaluations[-1]
    test = None
    if data.test:
        test = shown.errors()
        console.line("test " + errors_text(test))
    factors = {} if model.calibration is None else model.calibration.factors
    if factors:
        text = ", ".join(f"{name} x {factor:.2f}" for name, factor in factors.items())
        console.line(f"spread of the members, calibrated on {len(data.valid)} validation structures: {text}")
    uncertainty = quality(shown, len(model.members))
    where = "test" if data.test else "validation"
    if uncertainty:
        console.table(f"uncertainties beside errors, {where} structures", *quality_table(uncertainty))
    record = {"stages": entries, "test": test, "calibration": factors}
    record["uncertainty"] = {"structures": where, **quality_record(uncertainty)}
    pictures = [plots.parity(shown, out / "parity.png")]
    if uncertainty:
        pictures.append(plots.calibration(shown, len(model.members), out / "calibration.png"))
    write_text(out / "results.json", json.dumps(record, indent=1))
    for file in (path, *pictures):
        console.line(f"wrote {file}")
    return model, path, entries, test


def _mean_charges(found: Evaluation) -> dict[str, float]:
    """e, by symbol."""
    return {symbol: values["mean"] for symbol, values in found.charges_by_element().items()}
