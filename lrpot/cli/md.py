"""`lrpot md`: molecular dynamics with a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.crystal import Crystal
from lrpot.cli.options import Device, DType, Model, Precision, Seed


class Ensemble(StrEnum):
    nve = "nve"
    nvt = "nvt"
    npt = "npt"


class Thermostat(StrEnum):
    langevin = "langevin"
    bussi = "bussi"
    nose_hoover = "nose-hoover"


class Barostat(StrEnum):
    isotropic = "isotropic"
    full = "full"


class OnUncertain(StrEnum):
    stop = "stop"
    flag = "flag"


def md(
    model: Model,
    structure: Crystal,
    ensemble: Annotated[
        Ensemble, typer.Option("--ensemble", help="nve, nvt, or npt (Martyna, Tobias and Klein).")
    ] = Ensemble.nve,
    thermostat: Annotated[Thermostat, typer.Option("--thermostat", help="The bath of nvt.")] = Thermostat.langevin,
    barostat: Annotated[
        Barostat, typer.Option("--barostat", help="What npt changes: the size of the cell, or its shape too.")
    ] = Barostat.isotropic,
    temperature: Annotated[float, typer.Option("--temperature", help="K.")] = 300.0,
    temperature_end: Annotated[
        float | None,
        typer.Option("--temperature-end", help="Heat or cool the bath to this, linearly, K.", show_default="none"),
    ] = None,
    pressure: Annotated[float, typer.Option("--pressure", help="Of npt, GPa.")] = 0.0,
    steps: Annotated[int, typer.Option("--steps", help="Number of steps.")] = 1000,
    timestep: Annotated[float, typer.Option("--timestep", help="fs.")] = 1.0,
    friction: Annotated[float, typer.Option("--friction", help="Of the langevin bath, 1/fs.")] = 0.01,
    tdamp: Annotated[float, typer.Option("--tdamp", help="Response time of the other baths, fs.")] = 100.0,
    pdamp: Annotated[float, typer.Option("--pdamp", help="Response time of the cell in npt, fs.")] = 1000.0,
    interval: Annotated[int, typer.Option("--interval", help="Steps between frames.")] = 10,
    supercell: Annotated[
        tuple[int, int, int],
        typer.Option("--supercell", help="Repeat the crystal, and its total charge, along its lattice vectors."),
    ] = (1, 1, 1),
    skin: Annotated[
        float, typer.Option("--skin", help="Keep neighbours this far beyond the cutoff, A; faster, same results.")
    ] = 0.0,
    stress: Annotated[
        bool,
        typer.Option("--stress", help="Record stress and pressure in nve and nvt too: one more evaluation a frame."),
    ] = False,
    max_uncertainty: Annotated[
        float | None,
        typer.Option(
            "--max-uncertainty",
            help="Largest uncertainty of a force that is let pass, eV/A; needs an ensemble.",
            show_default="none",
        ),
    ] = None,
    on_uncertain: Annotated[
        OnUncertain, typer.Option("--on-uncertain", help="stop at a step above that, or flag: count it and go on.")
    ] = OnUncertain.stop,
    out: Annotated[Path, typer.Option("--out", help="Trajectory: .traj, .extxyz, .xyz, or .h5 (H5MD).")] = Path(
        "md.traj"
    ),
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between states to go on from.")] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last state of the run in --out; other options as before.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing trajectory.")] = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
    seed: Seed = 0,
) -> None:
    """Run MD; writes the trajectory, and beside it a table (.csv), a picture of energy conservation, and a state.

    The same command with --resume goes on from the state, exactly, whatever ended the run. Frames of steps above
    --max-uncertainty go to a file of their own, OUT.uncertain.extxyz.
    """
    import hashlib

    import torch

    from lrpot import plots
    from lrpot.calibration import doubts
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble as Potentials
    from lrpot.errors import ConfigError, Interrupted, OutputError
    from lrpot.files import check_writable
    from lrpot.interfaces.ase import LRCalculator
    from lrpot.interrupts import finish_step_on_ctrl_c
    from lrpot.md import run_md
    from lrpot.md.frames import FORMATS
    from lrpot.model_file import load
    from lrpot.prediction import read_crystals
    from lrpot.shipped import find_model
    from lrpot.supercell import repeated

    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out}: unknown ending {out.suffix!r}; use {', '.join(FORMATS)}")
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite replaces it; give one of them")
    endings = (".uncertain.extxyz", ".csv", ".energy.png", ".state")
    uncertain, table, picture, state = (out.with_suffix(ending) for ending in endings)
    for file in (out, table, picture, *([] if max_uncertainty is None else [uncertain])):
        if file.exists() and not overwrite and not resume:
            raise OutputError(
                f"{file}: exists already; add --resume to go on with that run, --overwrite to replace it, or choose "
                "another --out"
            )
    if min(supercell) < 1:
        raise ConfigError(f"--supercell {supercell}: numbers must be 1 or more")
    potential = load(model, device=device, dtype=getattr(torch, dtype.value))
    (row,), _ = read_crystals(potential, structure, last=True)  # names file and row of what the model cannot treat
    console = Console()
    if max_uncertainty is not None:
        if not isinstance(potential, Potentials):
            raise ConfigError(
                f"--max-uncertainty needs an ensemble, and {model} is a single model; fit one with lrpot fit "
                "--ensemble 4, or join models with lrpot ensemble"
            )
        for doubt in doubts(potential):
            console.warn(doubt)
    check_writable(out)
    atoms = repeated(row.atoms, supercell)
    atoms.calc = LRCalculator(potential, device=device, dtype=dtype.value, skin=skin, stress=ensemble is Ensemble.npt)
    with (
        console.progress(f"{ensemble.value}, {len(atoms)} atoms", steps, "steps") as update,
        finish_step_on_ctrl_c(console.warn) as interrupted,
    ):
        run = run_md(
            atoms,
            ensemble=ensemble.value,
            thermostat=thermostat.value,
            barostat=barostat.value,
            temperature=temperature,
            temperature_end=temperature_end,
            pressure=pressure,
            steps=steps,
            timestep=timestep,
            friction=friction,
            tdamp=tdamp,
            pdamp=pdamp,
            interval=interval,
            seed=seed,
            record_stress=stress,
            save_every=save_every,
            trajectory=out,
            table=table,
            state=state,
            resume=resume,
            about={"model": hashlib.sha256(find_model(model).read_bytes()).hexdigest(), "dtype": dtype.value},
            max_uncertainty=max_uncertainty,
            on_uncertain=on_uncertain.value,
            uncertain=None if max_uncertainty is None else uncertain,
            progress=update,
            stop=interrupted,
        )
    if interrupted():
        raise Interrupted(
            f"stopped by Ctrl-C; {out} holds the {len(run.time_fs)} frames so far, and --resume goes on from there"
        )
    mean = sum(run.temperature) / len(run.temperature)
    speed = f"{1e3 * run.seconds_per_step:.1f} ms/step"
    line = f"{steps} steps of {timestep:g} fs, {len(atoms)} atoms, {speed}, mean {mean:.0f} K"
    if run.pressure:
        line += f", mean {sum(run.pressure) / len(run.pressure):.3f} GPa"
    if run.conserved:
        what = "energy" if ensemble is Ensemble.nve else "conserved energy"
        line += f", {what} drift {run.drift:.1e} eV/atom/ps"
    if run.force_uncertainty:
        line += f", force uncertainty up to {max(run.force_uncertainty):.3g} eV/A in the frames"
    console.line(line)
    plots.energy_conservation(run.time_fs, run.potential, run.kinetic, run.n_atoms, picture, conserved=run.conserved)
    if atoms.calc.outside is not None:
        console.warn(f"the run left the training set, where the model may be wrong: {atoms.calc.outside}")
    if run.uncertain_steps:
        console.warn(
            f"{len(run.uncertain_steps)} of {steps + 1} steps have a force that is more uncertain than "
            f"{max_uncertainty:g} eV/A, the first of them step {run.uncertain_steps[0]}; they are in {uncertain}"
        )
    elif max_uncertainty is not None:
        uncertain.unlink(missing_ok=True)  # of a run that --overwrite has replaced
    for file in (out, table, picture):
        console.line(f"wrote {file}")
