"""`run_md`: a run from its first step, or from a state, to its last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.md import MolecularDynamics

from lrpot.errors import ConfigError, StructureError
from lrpot.md.frames import open_frames
from lrpot.md.integrators import make_dynamics, numbers_of, prepare, set_numbers, set_temperature
from lrpot.md.record import MDRun, Recorder
from lrpot.md.settings import Settings
from lrpot.md.state import State, check_atoms, check_same, identity_of, read_state, write_state
from lrpot.md.watch import SimulationError, Watch, fault, uncertainties_of


def run_md(
    atoms: Atoms,
    *,
    trajectory: str | Path | None = None,
    table: str | Path | None = None,
    state: str | Path | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    max_uncertainty: float | None = None,
    on_uncertain: str = "stop",
    uncertain: str | Path | None = None,
    progress: Callable[[int, str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> MDRun:
    """Run MD of atoms that have a calculator; they are left in the last state.

    Args:
        trajectory: file for the frames: .traj, .xyz, .extxyz, or .h5 (H5MD; see `lrpot.md.hdf5`); None for none. An
            older file stays until the first frame is known.
        table: CSV file for what is recorded of each frame; None for none.
        state: file from which the run can go on; None for none.
        resume: go on from there, with the same calculator and settings; only `steps` may be more. Files are cut back to
            what they held when the state was saved. Whatever ended the run, what follows is the same to the last bit,
            if forces depend on nothing but the atoms.
        about: JSON that must be the same when the run goes on, such as the hash of a model.
        max_uncertainty: eV/A; the largest uncertainty of a force that is let pass, looked for at every step. Needs the
            calculator of an ensemble.
        on_uncertain: "stop" at a step above it, or "flag": count it and go on.
        uncertain: file for the frames of such steps, .xyz/.extxyz, with `force_uncertainty` of each atom; None for
            none.
        progress: called with the steps done and a line on energy, temperature, pressure, drift, speed, uncertainty.
        stop: asked after every step; the run ends there once it says so.
        settings: of `Settings`: ensemble, temperature, steps, timestep, ...
    Raises:
        ConfigError: a setting out of range, that does not fit the atoms or does nothing in this ensemble, an `about`
            that is no JSON, a limit for uncertainties that are not told, or other settings than those of the run that
            is to go on.
        SimulationError: an uncertainty above its limit, forces or velocities that are not finite, atoms that collide,
            or a temperature, of all or of one atom, of 100 times the target (looked for at every step); the frames
            before it are kept.
        OutputError, DataError: there is no state, or it or a file does not belong to the run.
    """
    chosen = Settings(**settings)
    chosen.check()
    if max_uncertainty is None and (on_uncertain != "stop" or uncertain is not None):
        raise ConfigError(
            "on_uncertain and uncertain do nothing without max_uncertainty (eV/A); give one, or leave them out"
        )
    run = _Run(atoms, chosen, trajectory=trajectory, table=table, state=state, about=about)
    if max_uncertainty is not None:
        run.watch = Watch(max_uncertainty, on_uncertain, uncertain)
    try:
        run.start(resume=resume)
        return run.go(progress, stop)
    finally:
        run.close()


class _Run:
    """The parts of a run, and the order in which they are asked."""

    watch: Watch | None = None
    dynamics: MolecularDynamics
    resumed = False

    def __init__(
        self,
        atoms: Atoms,
        settings: Settings,
        *,
        trajectory: str | Path | None,
        table: str | Path | None,
        state: str | Path | None,
        about: Mapping[str, Any] | None,
    ) -> None:
        self.atoms = atoms
        self.settings = settings
        self.frames = open_frames(trajectory)
        self.state = state
        self.identity = identity_of(atoms)
        self.made_with = {**asdict(settings), **_as_json(about or {})}
        self.rng = np.random.default_rng(settings.seed)
        self.recorder = Recorder(atoms, settings, table)

    @property
    def step(self) -> int:
        return self.dynamics.get_number_of_steps()

    def start(self, *, resume: bool) -> None:
        """Make the integrator, and find out what is wrong with the start before any file is touched."""
        saved = self._read() if resume else None
        if saved is None:
            prepare(self.atoms, self.settings, self.rng)
        else:
            saved.give_to(self.atoms)
        self.dynamics = make_dynamics(self.atoms, self.settings, self.rng)
        self.atoms.get_forces()
        self._check_calculator()
        if saved is not None:
            set_numbers(self.dynamics, saved.integrator)
            self._take_up(saved.about)

    def go(self, progress: Callable[[int, str], None] | None, stop: Callable[[], bool] | None) -> MDRun:
        """All steps that are left."""
        first, started = self.step, time.perf_counter()

        def after_step() -> None:
            if self.resumed and self.step == first:
                return  # ASE shows its observers step 0, which the state is from
            self._check()
            if self.step == 0 and self.state is not None:
                # it belongs to files that the first frame replaces
                Path(self.state).unlink(missing_ok=True)
            if self.settings.temperature_end is not None:
                set_temperature(self.dynamics, self.settings.target(self.step))
            if self.step % self.settings.interval == 0:
                note = self.recorder.record(self.dynamics)
                self.frames.write(self.atoms, self.step, self.step * self.settings.timestep)
                if progress is not None:
                    progress(self.step, note)
            if self.step % self.settings.save_every == 0:
                self._save()

        self.dynamics.attach(after_step, interval=1)
        try:
            for _ in self.dynamics.irun(self.settings.steps - first):
                if stop is not None and stop():
                    break
        except (StructureError, np.linalg.LinAlgError) as error:
            raise self._failure(self.step + 1, str(error).split(";")[0]) from error
        if self.step % self.settings.save_every != 0:
            self._save()
        self.recorder.run.seconds_per_step = (time.perf_counter() - started) / max(self.step - first, 1)
        return self.recorder.run

    def close(self) -> None:
        try:
            self.frames.close()
        finally:  # a full disk is told once more by whatever was not yet written
            self.recorder.close()

    def _check(self) -> None:
        target, keeps_momentum = self.settings.target(self.step), self.settings.keeps_momentum
        if wrong := fault(self.atoms, target, keeps_momentum=keeps_momentum):
            raise self._failure(self.step, wrong)
        if self.watch is not None and self.watch.exceeded(self.atoms, self.step):
            self.recorder.run.uncertain_steps.append(self.step)

    def _failure(self, step: int, what: str) -> SimulationError:
        return SimulationError(
            f"step {step}: {what}; the model is outside its range or the time step of {self.settings.timestep:g} fs is "
            f"too long; the frames before step {step} are kept"
        )

    def _check_calculator(self) -> None:
        if self.watch is not None and uncertainties_of(self.atoms) is None:
            raise ConfigError(
                "max_uncertainty needs the calculator of an ensemble; this one does not say how uncertain it is. Fit "
                "one with lrpot fit --ensemble 4, or join models with lrpot ensemble"
            )
        if self.settings.ensemble == "npt" or self.settings.record_stress:
            try:
                self.atoms.get_stress()
            except PropertyNotImplementedError as error:
                raise ConfigError(
                    f"npt and record_stress need the stress, which is not known here ({error})"
                ) from error

    def _save(self) -> None:
        if self.state is None:
            return
        # files first: a state never says more than what is on disk
        marks = {"trajectory": self.frames.mark(), "table": self.recorder.mark()}
        if self.watch is not None:
            marks["uncertain"] = self.watch.frames.mark()
        about = {
            "made_with": self.made_with,
            "atoms": self.identity,
            "random": self.rng.bit_generator.state,
            "uncertain_steps": self.recorder.run.uncertain_steps,
            "marks": marks,
        }
        atoms = self.atoms
        parts = atoms.get_positions(), atoms.get_momenta(), atoms.cell.array, atoms.numbers
        write_state(self.state, State(*parts, integrator=numbers_of(self.dynamics), about=about))

    def _read(self) -> State:
        if self.state is None:
            raise ConfigError("resume needs the file of a state; name it")
        saved = read_state(self.state)
        check_same(self.state, saved.about["made_with"], self.made_with)
        check_atoms(self.state, saved, self.atoms)
        return saved

    def _take_up(self, about: Mapping[str, Any]) -> None:
        if self.step > self.settings.steps:
            raise ConfigError(
                f"{self.state}: that run has done {self.step} steps, and {self.settings.steps} are asked for; ask for "
                "more with --steps, or start anew with --overwrite"
            )
        self.resumed = True
        self.rng.bit_generator.state = about["random"]
        self.recorder.run.uncertain_steps = list(about["uncertain_steps"])
        self.recorder.rewind(about["marks"]["table"])
        if mark := about["marks"]["trajectory"]:  # else no frames were kept so far
            self.frames.rewind(mark, self.atoms)
        mark = about["marks"].get("uncertain")
        if self.watch is not None and mark:
            self.watch.frames.rewind(mark, self.atoms)


def _as_json(about: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a state.

    Raises:
        ConfigError: no JSON.
    """
    try:
        return dict(json.loads(json.dumps(about)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"about = {about}: no JSON ({error}); give texts, numbers and lists of such") from error
