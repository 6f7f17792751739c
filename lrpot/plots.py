"""Pictures of a fit and of a run: parity, learning curves, the learned kernel, energy conservation, fitted charges,
calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from lrpot.analysis import energy_drift
from lrpot.calibration import LEVELS, dof, expected_sizes, fractions_within
from lrpot.charge_scale import SCALES, ErrorAlongScale
from lrpot.charges.prefit import LONGER, Prefit
from lrpot.evaluation import QUANTITIES, UNITS, Evaluation
from lrpot.plot_style import COLOURS, STYLE, save, thinned
from lrpot.potential import Potential
from lrpot.units import COULOMB_CONSTANT


def parity(evaluation: Evaluation, path: str | Path, title: str = "") -> Path:
    """Predicted against reference, with the errors below each other: one column per quantity."""
    names = [name for name in QUANTITIES if name in evaluation.reference]
    errors = evaluation.errors()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(names), figsize=(4.2 * len(names), 5.6), squeeze=False, height_ratios=(3, 1.2)
        )
        for name, (top, bottom) in zip(names, axes.T, strict=True):
            reference = evaluation.reference[name].numpy()
            difference = evaluation.predicted[name].numpy() - reference
            reference, difference = thinned(reference, difference)
            top.plot(reference, reference + difference, ".", ms=3, alpha=0.5, color=COLOURS[0], rasterized=True)
            top.axline((reference[0], reference[0]), slope=1, color="0.4", lw=0.8, zorder=0)
            quantity = "energy per atom" if name == "energy" else name.replace("_", " ")
            top.set(ylabel=f"predicted {quantity} ({UNITS[name]})", title=_error_line(errors[name]))
            bottom.plot(reference, difference, ".", ms=3, alpha=0.5, color=COLOURS[0], rasterized=True)
            bottom.axhline(0.0, color="0.4", lw=0.8, zorder=0)
            bottom.set(xlabel=f"reference {quantity} ({UNITS[name]})", ylabel="error")
            bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            for axis in (top, bottom):
                axis.locator_params(axis="x", nbins=5)
        if title:
            figure.suptitle(title)
        return save(figure, path)


def learning_curves(stages: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Validation errors against epochs, one panel per quantity, stages side by side in each.

    Args:
        stages: with "title" and "history", records with "epoch" and errors by label.
    """
    names = [name for name in QUANTITIES if any(name in stage["history"][0] for stage in stages)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.6), squeeze=False)
        for name, axis in zip(names, axes[0], strict=True):
            start = 0
            for number, stage in enumerate(stages):
                epochs = [start + record["epoch"] for record in stage["history"]]
                # a stage that leaves the charges alone has no errors of them
                values = [record.get(name, math.nan) for record in stage["history"]]
                label = f"{number + 1}: {stage['title']}"
                axis.semilogy(epochs, values, ".-", ms=3, lw=1.2, color=COLOURS[number % 5], label=label)
                start = epochs[-1] + 1
                if number + 1 < len(stages):
                    axis.axvline(start - 0.5, color="0.6", lw=0.8, ls=":")
            axis.set(xlabel="epoch", ylabel=f"validation MAE, {name.replace('_', ' ')} ({UNITS[name]})")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=len(stages), fontsize=8)
        return save(figure, path)


def kernel(model: Potential, path: str | Path) -> Path:
    """The learned Phi(|k|), and the energy of two unit charges in real space, beside bare Coulomb and r^-6."""
    assert model.long is not None
    reciprocal = model.long.reciprocal
    k = torch.linspace(0.02, reciprocal.k_cutoff, 800, dtype=torch.float64)
    with torch.no_grad():
        phi = reciprocal.phi(k)
    bare = 2.0 * math.pi * COULOMB_CONSTANT / k**2
    r = torch.linspace(0.5, 30.0, 400, dtype=torch.float64)
    pair = model.long.pair_energy(r)
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.8))
        left.loglog(k, bare, color="0.5", ls="--", lw=1.2, label=r"bare Coulomb $2\pi k_e/k^2$")
        _both_signs(left, k, phi, r"$\Phi(k)$")
        left.set(xlabel="|k| (1/Å)", ylabel=r"$\Phi$ (eV Å$^3$/e$^2$)", title="kernel in reciprocal space")
        left.set_ylim(float(bare.min()) * 1e-6, float(bare.max()) * 3)
        left.legend(fontsize=8)
        middle.loglog(r, COULOMB_CONSTANT / r, color="k", ls="--", lw=0.8, zorder=3, label=r"bare Coulomb $k_e/r$")
        middle.loglog(r, r**-6.0, color="0.5", ls=":", lw=1.2, label=r"$r^{-6}$ (1 eV Å$^6$)")
        _both_signs(middle, r, pair, "u(r)")
        middle.set(xlabel="r (Å)", ylabel="energy of two unit charges (eV)", title="in real space")
        middle.set_ylim(1e-7, 2.0 * COULOMB_CONSTANT / float(r[0]))
        middle.legend(fontsize=8)
        right.plot(r, pair * r / COULOMB_CONSTANT - 1.0, color=COLOURS[0])
        right.axhline(0.0, color="0.5", ls="--", lw=1.0)
        right.set(xlabel="r (Å)", ylabel="learned / Coulomb - 1", title="difference in real space")
        right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        return save(figure, path)


def energy_conservation(
    time_fs: Sequence[float],
    potential: Sequence[float],
    kinetic: Sequence[float],
    n_atoms: int,
    path: str | Path,
    *,
    conserved: Sequence[float] = (),
) -> Path:
    """Potential, kinetic and total energy of an MD run, per atom and relative to the start; what a run with a bath
    conserves.

    Args:
        time_fs: fs. potential, kinetic: eV, of the whole system.
        conserved: eV; the total energy if empty.
    """
    ps = np.asarray(time_fs) / 1000.0
    parts = {"potential": np.asarray(potential) / n_atoms, "kinetic": np.asarray(kinetic) / n_atoms}
    total = parts["potential"] + parts["kinetic"]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.6))
        for colour, (name, values) in zip(COLOURS[1:], parts.items(), strict=False):
            left.plot(ps, 1e3 * (values - values[0]), color=colour, label=name)
        left.plot(ps, 1e3 * (total - total[0]), color=COLOURS[0], label="total")
        left.set(xlabel="time (ps)", ylabel="change of energy (meV/atom)", title="exchange")
        left.legend(fontsize=8)
        kept = np.asarray(conserved) / n_atoms if len(conserved) else total
        # where nothing is exchanged with a bath it is the total energy
        name = "total" if np.allclose(kept - kept[0], total - total[0], rtol=0.0, atol=1e-12) else "conserved"
        right.plot(ps, 1e6 * (kept - kept[0]), color=COLOURS[0])
        title = f"{name}: drift {energy_drift(time_fs, (kept * n_atoms).tolist(), n_atoms):.1e} eV/atom/ps"
        right.set(xlabel="time (ps)", ylabel=f"change of {name} energy (µeV/atom)", title=title)
        return save(figure, path)


def charges(fit: Prefit, path: str | Path) -> Path:
    """Fitted charges and what speaks for them: over pair cutoffs, on held-out forces, as products."""
    symbols = [chemical_symbols[z] for z in fit.elements]
    reach = [at.pair_cutoff for at in fit.cutoffs]
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.0, 3.8))
        for n, symbol in enumerate(symbols):
            values = [at.charges[n] for at in fit.cutoffs]
            bars = [at.uncertainties[n] for at in fit.cutoffs]
            left.errorbar(reach, values, bars, fmt="o-", ms=4, capsize=3, color=f"C{n}", label=symbol)
        left.axhline(0.0, color="0.5", lw=0.8)
        left.set(xlabel="pair cutoff (Å)", ylabel="charge (e)", title="charges")
        left.legend(fontsize=8, ncols=3)
        middle.plot(reach, [100 * at.explained for at in fit.cutoffs], "o-", color=COLOURS[0], label="charges")
        middle.plot(
            reach,
            [100 * at.longer for at in fit.cutoffs],
            "s--",
            color=COLOURS[1],
            label=f"{LONGER:g} Å longer splines",
        )
        # a fit that fails may be worse than nothing by any factor
        middle.set_ylim(bottom=max(min(middle.get_ylim()[0], 0.0), -100.0))
        middle.set(xlabel="pair cutoff (Å)", ylabel="explained of the rest (%)", title="forces that were held out")
        middle.legend(fontsize=8)
        for axis in (left, middle):
            axis.axvline(fit.best.pair_cutoff, color="0.6", lw=0.8, ls=":")
        pairs = list(combinations_with_replacement(range(len(symbols)), 2))
        free = [fit.best.products[a, b] for a, b in pairs]
        right.plot(free, "o", ms=7, mfc="none", color=COLOURS[0], label="fitted freely")
        right.plot(
            [fit.best.charges[a] * fit.best.charges[b] for a, b in pairs], "x", color=COLOURS[1], label="charges"
        )
        right.axhline(0.0, color="0.5", lw=0.8)
        names = [f"{symbols[a]}-{symbols[b]}" for a, b in pairs]
        right.set_xticks(range(len(pairs)), names, rotation=90 if len(pairs) > 6 else 0)
        right.set(ylabel="product of charges (e²)", title="every pair of elements")
        right.legend(fontsize=8)
        return save(figure, path)


def charge_scale(errors: Mapping[str, ErrorAlongScale], path: str | Path) -> Path:
    """Errors against the factor by which all charges are multiplied while the network stays as it is; the band is
    where the mean square error is less than twice its least value.

    Args:
        errors: by quantity, at least one.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(errors), figsize=(4.8 * len(errors), 3.8), squeeze=False)
        for axis, (name, along) in zip(axes[0], errors.items(), strict=True):
            axis.plot(SCALES, [along.rmse(s) for s in SCALES], "o-", ms=4, color=COLOURS[0])
            low, high = max(along.best - along.width, SCALES[0]), min(along.best + along.width, SCALES[-1])
            if low < high:
                label = "mean square error at most doubled"
                axis.axvspan(low, high, color=COLOURS[2], alpha=0.15, lw=0, label=label)
            if SCALES[0] <= along.best <= SCALES[-1]:
                axis.axvline(along.best, color=COLOURS[2], lw=1.2, label=f"best: {along.best:.3f} ± {along.width:.2g}")
            axis.axvline(1.0, color="0.4", lw=0.8, ls="--", label="the model")
            axis.set_ylim(bottom=0.0)
            axis.legend(fontsize=8, loc="lower left")
            quantity = "energy per atom, offsets refitted" if name == "energy" else name
            axis.set(xlabel="all charges times", ylabel=f"RMSE ({UNITS[name]})", title=f"{quantity}; network frozen")
        return save(figure, path)


def calibration(evaluation: Evaluation, members: int, path: str | Path) -> Path:
    """How far the uncertainties of an ensemble of so many members can be relied on, one column per quantity.

    Above, the size of the errors of structures, or atoms, of like uncertainty. Below, how many errors are within what
    should hold a share of them. On the diagonal all is well; below it above, and above it below, errors are smaller
    than they are said to be.

    Args:
        evaluation: of labelled structures, where the members differ.
        members: how many they are.
    """
    names = [name for name, sigma in evaluation.uncertainty.items() if bool(sigma.any())]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(names), figsize=(4.6 * len(names), 8.0), squeeze=False)
        for name, (top, bottom) in zip(names, axes.T, strict=True):
            errors = (evaluation.predicted[name] - evaluation.reference[name]).numpy()
            sigma = evaluation.uncertainty[name].numpy()
            said, found = _binned_sizes(sigma, errors)
            visible = (sigma > 0) & (errors != 0)
            shown = thinned(sigma[visible], np.abs(errors[visible]))
            alpha = float(np.clip(300 / max(len(shown[0]), 1), 0.2, 0.8))  # a few dots must be seen, many see through
            top.loglog(*shown, ".", ms=5, alpha=alpha, mew=0, color="0.5", rasterized=True, label="|error|")
            top.loglog(said, found, "o-", ms=4, color=COLOURS[0], label="root mean square of like uncertainty")
            top.axline((said[-1], said[-1]), (2 * said[-1], 2 * said[-1]), color="0.3", lw=0.8, label="ideal")
            quantity = "energy per atom" if name == "energy" else f"{name}, components"
            top.set(xlabel=f"uncertainty ({UNITS[name]})", ylabel=f"error ({UNITS[name]})", title=quantity)
            top.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            top.xaxis.set_major_formatter("{x:.0e}")
            top.xaxis.set_minor_formatter("")
            top.legend(fontsize=8, loc="upper left")
            nu = dof(name, members)
            bottom.plot([0, 1], [0, 1], color="0.3", lw=0.8)
            observed = fractions_within(errors, sigma, expected_sizes(LEVELS, nu))
            bottom.plot(LEVELS, observed, "o-", ms=4, color=COLOURS[0])
            bottom.set(xlabel="expected share of errors", ylabel="share found within that uncertainty", aspect="equal")
        return save(figure, path)


def _binned_sizes(sigma: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares of both, in up to ten bins of like sigma with about as many numbers each, ten or more."""
    parts = np.array_split(np.argsort(sigma, kind="stable"), min(max(len(sigma) // 10, 1), 10))
    rms = [[np.sqrt(np.mean(values[part] ** 2)) for part in parts] for values in (sigma, errors)]
    return np.array(rms[0]), np.array(rms[1])


def _both_signs(axis: Axes, x: torch.Tensor, y: torch.Tensor, name: str) -> None:
    """A curve on logarithmic axes; where it is negative, its opposite, dotted."""
    for sign, colour, style, label in ((1, COLOURS[0], "-", f"learned {name}"), (-1, COLOURS[1], ":", f"-{name}")):
        if bool((sign * y > 0).any()):
            axis.loglog(x, torch.where(sign * y > 0, sign * y, torch.nan), color=colour, ls=style, label=label)


def _error_line(errors: dict[str, Any]) -> str:
    return f"MAE {errors['mae']:.2g}, RMSE {errors['rmse']:.2g} {errors['unit']}"
