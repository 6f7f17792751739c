"""`fit`: labelled structures in, a run directory with a model and its errors out."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrpot.build import build_potential
from lrpot.charges.start import given_charges
from lrpot.config import FitConfig, make_config, without_effect
from lrpot.console import Console
from lrpot.data.sources import content_hash
from lrpot.errors import ConfigError, OutputError
from lrpot.files import run_directory, write_text
from lrpot.model_file import check_device, load, save
from lrpot.potential import Potential
from lrpot.properties.build import build_property_model
from lrpot.properties.trees import scikit_learn_trees
from lrpot.shipped import find_model
from lrpot.training.batches import check_sizes
from lrpot.training.dataset import FitData, read_data
from lrpot.training.ensemble import fit_ensemble, join_potentials
from lrpot.training.finetune import START, check_new_elements, read_start
from lrpot.training.launch import environment, join, processes_of, start, told_once
from lrpot.training.loggers import check_loggers
from lrpot.training.parallel import ALONE, Processes
from lrpot.training.potential_run import PotentialRun
from lrpot.training.precision import check_mixed_precision
from lrpot.training.property_ensemble import join_properties
from lrpot.training.property_run import PropertyRun, set_scales
from lrpot.training.record import recorded
from lrpot.training.run import MODEL, SPLIT, Run
from lrpot.training.run_log import LOG, RunLog
from lrpot.training.split import write_split
from lrpot.training.target_names import with_targets

# In the directory of a run: its settings.
CONFIG = "config.yaml"

# What may change when a run is resumed: how it is computed, which changes last digits at most; and the size of a step,
# for where memory ran out.
HOW = ("training.device", "training.devices", "training.nodes", "training.logger", "data.jobs", "data.cache")
STEP = ("training.batch_size", "training.max_edges", "training.max_atoms", "training.accumulate")


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves.

    Attributes:
        model: the fitted potential or property model, in evaluation mode; an `lrpot.ensemble.Ensemble` or
            `lrpot.properties.model.PropertyEnsemble` if several were fitted.
        path: of model.pt.
        stages: one entry per stage: title, epochs, seconds, validation errors, charges; of an ensemble one per member.
        test: errors on the test structures, or None without any, and in all processes but the first.
    """

    model: Any
    path: Path
    stages: list[dict[str, Any]]
    test: dict[str, Any] | None


def fit(
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path,
    from_model: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | FitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    ensemble: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> FitResult:
    """Fit a potential, or a model of properties, to labelled structures.

    Args:
        data: files of structures with energies and, best, forces and stress, or with properties; the same as
            `data.train` of the config.
        out: directory of the run; gets model.pt, config.yaml, record.json, metrics.csv, fit.log, results.json and
            pictures.
        from_model: a model file to fine-tune; the same as `training.finetune.model` of the config.
        config: a YAML file, nested settings, or a `FitConfig`; None for the defaults.
        settings: settings by dotted name, such as {"training.max_epochs": 50}; they win over `config`.
        ensemble: how many models to fit; the same as `training.ensemble` of the config. More than one predict their
            mean and an uncertainty; each has a run directory of its own in `out`.
        resume: go on with an unfinished run in `out`, with its own configuration.
        overwrite: remove what is in `out` first.
        verbose: print what happens.
    Raises:
        ConfigError, DataError, OutputError: before any work starts.
        TrainingError: the loss is not a number; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    out = Path(out)
    found = environment()
    with told_once(found):
        settings = dict(settings or {})
        if data is not None:
            settings["data.train"] = str(data) if isinstance(data, (str, Path)) else [str(file) for file in data]
        if ensemble is not None:
            settings["training.ensemble"] = ensemble
        if from_model is not None:
            settings["training.finetune.model"] = str(from_model)
        resolved = _resolve(out, config, settings, resume=resume)
        training = resolved.training
        processes = processes_of(found, training.devices, training.nodes)
    job = functools.partial(_fit, out, resolved, resume=resume, overwrite=overwrite, verbose=verbose)
    if found is not None:
        return join(job, found, processes)
    if training.devices == 1:
        return job(processes)
    if training.device == "cuda":
        check_device(f"cuda:{training.devices - 1}")
    start(job, training.devices)
    return _finished(out, resolved)


def _resolve(
    out: Path, config: str | Path | Mapping[str, Any] | FitConfig | None, settings: Mapping[str, Any], *, resume: bool
) -> FitConfig:
    """The settings of a fit: those asked for, with those of the model that it starts from; or those of the run that is
    resumed."""
    saved, begun = out / CONFIG, None
    if not resume:
        resolved = make_config(config, settings)
        if resolved.training.finetune.model is not None:
            resolved, _ = read_start(config, settings, resolved.training.finetune.model)
    elif not saved.exists():
        raise OutputError(f"{out}: holds no run to resume (no config.yaml); start it without --resume")
    else:
        begun = make_config(saved)
        taken_over = None if begun.training.finetune.model is None else begun.model
        resolved = make_config(begun if config is None else config, settings, model=taken_over)
    if resolved.data.train is None:
        raise ConfigError("no training data; name a file: lrpot fit DATA --out DIR")
    if resolved.task == "property":
        resolved = with_targets(resolved)
    if begun is not None and _lasting(resolved) != _lasting(begun):
        raise ConfigError(
            f"{out}: the run was started with other settings (see {saved}); resume it without any, or start anew in "
            "another --out"
        )
    return resolved


def _lasting(config: FitConfig) -> dict[str, Any]:
    """Settings that a resumed run must have, all but `HOW` and `STEP`."""
    settings = config.model_dump()
    for name in (*HOW, *STEP):
        section, setting = name.split(".")
        del settings[section][setting]
    return settings


def _fit(
    out: Path, config: FitConfig, processes: Processes, *, resume: bool, overwrite: bool, verbose: bool
) -> FitResult:
    """Fit as one of these processes."""
    log = RunLog()
    console = Console(quiet=not (verbose and processes.first), copy=log.add)
    training = config.training
    # data and configuration are checked before the directory is touched
    check_device(processes.device(training.device))
    check_loggers(config)
    if config.task == "property" and config.properties.head.kind == "trees":
        scikit_learn_trees()
    if not resume:
        for line in without_effect(config):
            console.warn(line)
    about: dict[str, Any] = {"seed": training.seed}
    begin = None
    if training.finetune.model is not None:
        begin = load(out / START if resume else training.finetune.model)
        if not resume:
            about["from"] = {
                "model": training.finetune.model,
                "sha256": content_hash(find_model(training.finetune.model)),
            }
    data = _read(out, config, console, begin, resume=resume)
    about["files"] = data.record["files"]
    processes.wait()  # all have read what there is before the first changes it
    held = _held(out, log, resume=resume, overwrite=overwrite) if processes.first else nullcontext()
    with held:
        if processes.first:
            if resume:
                _tell_changes(out, config, console)
            elif begin is not None:
                save(begin, out / START)  # before the settings, without which there is nothing to resume
            write_text(out / CONFIG, config.to_yaml())
        if training.ensemble > 1:
            write_text(out / SPLIT, write_split(data.record["split"], data.record["files"]))
            fit_member = functools.partial(_fit_member, begin, about)
            join = join_properties if config.task == "property" else join_potentials
            return FitResult(*fit_ensemble(out, config, data, console, begin, fit_member, join))
        record: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if processes.first:
            record = recorded(out, about, device=training.device, warn=console.warn)
        with record as known:
            run = run_of(out, config, data, console, start=begin, record=known, processes=processes)
            return FitResult(run.fit(), out / MODEL, run.summary, run.test)


@contextmanager
def _held(out: Path, log: RunLog, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the directory of the run, and write what is said there."""
    with run_directory(out, resume=resume, overwrite=overwrite), log.written(out / LOG):
        yield


def _fit_member(
    begin: Potential | None, about: Mapping[str, Any], out: Path, config: FitConfig, data: FitData, console: Console
) -> Any:
    """Fit one of an ensemble."""
    about = {**about, "seed": config.training.seed}
    with recorded(out, about, device=config.training.device, warn=console.warn) as known:
        return run_of(out, config, data, console, start=begin, record=known, processes=ALONE).fit()


def run_of(out: Path, config: FitConfig, data: FitData, console: Console, **rest: Any) -> Run[Any]:
    """A run of the task that the settings name; arguments as of `Run`."""
    return (PropertyRun if config.task == "property" else PotentialRun)(out, config, data, console, **rest)


def _read(out: Path, config: FitConfig, console: Console, begin: Potential | None, *, resume: bool) -> FitData:
    """The structures of a fit, and whether it can be done with them.

    Args:
        begin: the model that it starts from, if any.
    """
    stored = out / SPLIT
    data = read_data(
        config,
        console,
        stored=stored if resume and stored.exists() else None,
        known=() if begin is None else begin.elements,
    )
    if begin is not None:
        check_new_elements(config, data.elements, begin)
    for part in (data.train, data.valid):
        check_sizes(part, config.training)
    if config.task == "property":
        with warnings.catch_warnings(record=True) as told:  # of forms that are not functions of the crystal
            warnings.simplefilter("always")
            of_properties = build_property_model(config.properties, data.elements)
        for warning in told:
            console.warn(str(warning.message))
        if not resume:
            set_scales(of_properties, data)  # tells targets that cannot be learned
        return data
    model = build_potential(config.model, data.elements)  # tells a clash of settings
    if config.training.precision == "bf16":
        check_mixed_precision(model.set_precision(torch.float32), data.train)
    if config.model.kernel.form != "none" and begin is None:
        given_charges(config.model.charges, data.elements, data.source)  # tells what is wrong with them
    return data


def _tell_changes(out: Path, config: FitConfig, console: Console) -> None:
    """Say what a resumed run does otherwise than before."""
    begun, now = make_config(out / CONFIG).training, config.training
    if begun.devices * begun.nodes != now.devices * now.nodes:
        console.warn(
            f"{out}: goes on with another number of processes ({now.devices * now.nodes}, before "
            f"{begun.devices * begun.nodes}); the result is the same up to rounding, not to the last bit"
        )
    if begun.device != now.device:
        console.warn(
            f"{out}: goes on on {now.device}, before on {begun.device}; the result is the same up to rounding, not to "
            "the last bit"
        )
    names = [name.removeprefix("training.") for name in STEP]
    changed = [
        f"{n} {getattr(now, n)}, before {getattr(begun, n)}" for n in names if getattr(now, n) != getattr(begun, n)
    ]
    if changed:
        console.warn(f"{out}: goes on with other steps ({'; '.join(changed)}); the result is that of neither alone")


def _finished(out: Path, config: FitConfig) -> FitResult:
    """What other processes have fitted."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    model = load(out / MODEL, device=config.training.device)
    return FitResult(model.eval().requires_grad_(False), out / MODEL, results["stages"], results["test"])
