"""Pictures are written whole, and the one that computes something computes it right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lrpot import plots
from lrpot.analysis import energy_drift
from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.evaluation import Evaluation
from lrpot.plot_style import thinned
from lrpot.units import COULOMB_CONSTANT


def test_both_halves_of_the_kernel_in_real_space_are_coulomb() -> None:
    """Before training, reciprocal half + complement = k_e / r at every distance, to what the envelopes leave out."""
    model = build_potential(make_config(None, {"model.kernel.tolerance": 1e-9}).model, [11, 17])
    r = torch.linspace(0.5, 30.0, 60, dtype=torch.float64)
    pair = model.long.pair_energy(r)
    assert not pair.requires_grad
    # 1e-7: the tapers start at 0.9 of both cutoffs, where 1e-9 is still (1e-9)^0.81 = 5e-8
    torch.testing.assert_close(pair, COULOMB_CONSTANT / r, rtol=1e-7, atol=0)


@pytest.mark.parametrize("form", ["coulomb", "free"])
def test_kernel_picture(tmp_path: Path, form: str) -> None:
    model = build_potential(make_config(None, {"model.kernel.form": form}).model, [11, 17])
    torch.manual_seed(0)
    torch.nn.init.normal_(model.long.reciprocal.kernel.fcn.last.weight)
    assert is_picture(plots.kernel(model, tmp_path / "kernel.png"))


@pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1)], ids=str)
def test_both_signs_are_drawn_on_logarithmic_axes(signs: tuple[int, ...]) -> None:
    """A negative value has no place on a logarithmic axis: its opposite is drawn instead, and said so."""
    x = torch.linspace(1.0, 2.0, 10, dtype=torch.float64)
    y = x * torch.tensor(signs, dtype=torch.float64).repeat_interleave(10 // len(signs))
    figure, axis = plt.subplots()
    plots._both_signs(axis, x, y, "u")
    curves = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    plt.close(figure)
    assert list(curves) == [{1: "learned u", -1: "-u"}[sign] for sign in signs]
    for sign, values in zip(signs, curves.values(), strict=True):
        np.testing.assert_array_equal(values, np.where(sign * y.numpy() > 0, x.numpy(), np.nan))


def test_parity_picture_of_all_quantities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: torch.from_numpy(rng.normal(size=30_000)) for name in ("energy", "forces", "stress")}
    evaluation = Evaluation(values, {name: 1.01 * value for name, value in values.items()}, 10, 100)
    assert is_picture(plots.parity(evaluation, tmp_path / "parity.png", "title"))


def test_learning_curves_and_energy_pictures(tmp_path: Path) -> None:
    history = [{"epoch": n, "loss": 1.0 / (n + 1), "energy": 1e-3, "forces": 1e-2} for n in range(4)]
    stages = [{"title": title, "history": history} for title in ("one", "two", "three")]
    assert is_picture(plots.learning_curves(stages, tmp_path / "curves.png"))
    time = np.arange(0.0, 100.0, 5.0)
    energies = np.sin(time), 1.0 - np.sin(time)
    assert is_picture(plots.energy_conservation(time, *energies, 8, tmp_path / "energy.png"))


def test_thinning_keeps_the_worst() -> None:
    reference = np.arange(100_000.0)
    difference = np.zeros_like(reference)
    difference[77_777] = -5.0
    kept, errors = thinned(reference, difference)
    assert len(kept) < 25_000
    assert kept[errors == -5.0].tolist() == [77_777.0]


def test_energy_drift_is_the_slope_per_atom_and_ps() -> None:
    time = np.arange(0.0, 2000.0, 10.0)
    assert energy_drift(time, 500.0 + 4 * 3e-5 * time / 1000, n_atoms=4) == pytest.approx(3e-5, rel=1e-6)
    assert energy_drift([0.0], [1.0], n_atoms=4) == 0.0


def is_picture(path: Path) -> bool:
    """A PNG that is not blank."""
    return path.is_file() and imread(path)[..., :3].std() > 0.01


@pytest.mark.parametrize(
    ("backend", "kept"), [("module://matplotlib.backends.backend_svg", True), ("pdf", False), ("", False)]
)
def test_a_notebook_keeps_its_way_to_show_pictures(backend: str, kept: bool) -> None:
    code = "import lrpot.plot_style, matplotlib; print(matplotlib.get_backend())"
    environment = os.environ | {"MPLBACKEND": backend}
    run = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    assert run.stdout.strip().lower() == (backend if kept else "agg")
