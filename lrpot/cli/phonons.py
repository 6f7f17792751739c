"""`lrpot phonons`: force constants, bands, density of states, splitting at Gamma."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.crystal import Crystal, First, Overwrite, RelaxFirst, bring_to_rest, read_crystal
from lrpot.cli.options import Device, DType, Model, Precision

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

    from lrpot.console import Console
    from lrpot.workflows.nac import LongWaves
    from lrpot.workflows.phonons import Phonons


class Splitting(StrEnum):
    model = "model"
    none = "none"


def phonons(
    model: Model,
    structure: Crystal,
    supercell: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            "--supercell", help="Repeat the cell along its lattice vectors.", show_default="at least 12 A wide"
        ),
    ] = None,
    distance: Annotated[float, typer.Option("--distance", help="Of each displacement, A.")] = 0.01,
    relax: RelaxFirst = First.cell,
    fmax: Annotated[float, typer.Option("--fmax", help="Largest force left by --relax, eV/A.")] = 1e-4,
    splitting: Annotated[
        Splitting, typer.Option("--splitting", help="Of LO and TO at Gamma: by the charges of the model, or none.")
    ] = Splitting.model,
    born: Annotated[
        Path | None,
        typer.Option(
            "--born",
            help="Born charges (e) and dielectric constant for it instead: phonopy's BORN, or YAML or JSON with "
            "symbols, born_charges and dielectric, of the primitive cell.",
            show_default="none",
        ),
    ] = None,
    mesh: Annotated[float, typer.Option("--mesh", help="Length that sets how dense q points are, A.")] = 80.0,
    out: Annotated[Path, typer.Option("--out", help="Directory for files of phonopy, results, picture.")] = Path(
        "phonons"
    ),
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Precision = DType.float64,
) -> None:
    """Phonons by finite displacements (needs the extra phonons): frequencies at Gamma, bands and density of states as a
    picture, and everything in phonopy's own formats, to go on with (phonopy-load OUT/phonopy_params.yaml).
    """
    from lrpot.console import Console
    from lrpot.errors import ConfigError, OutputError
    from lrpot.files import check_writable

    try:
        from lrpot.workflows import phonons as workflow
        from lrpot.workflows import pictures
    except ModuleNotFoundError as error:
        if error.name not in ("phonopy", "seekpath", "symfc"):
            raise
        raise ConfigError(f"{error.name} is not installed; pip install 'lrpot[phonons]' brings it") from error

    if not mesh > 0:
        raise ConfigError(f"--mesh {mesh:g}: must be positive")
    workflow.check_settings(supercell=supercell, distance=distance)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{out}: already holds files; add --overwrite to replace them, or choose another --out")
    check_writable(out / "phonons.json")
    console = Console()
    atoms = read_crystal(model, structure, device=device, dtype=dtype)
    atoms = bring_to_rest(console, atoms, relax, fmax=fmax)
    with console.progress("phonons", None, "displacements") as update:
        found = workflow.phonons(atoms, supercell=supercell, distance=distance, progress=update)
    if born is not None or splitting is Splitting.model:
        found.set_long_waves(_long_waves(console, found, atoms, born))
    found.run(mesh=mesh)
    _show(console, found, f"{structure}, {' '.join(found.phonopy.primitive.symbols)}: modes at Gamma")
    files = [*found.write(out), pictures.phonons(found, out / "phonons.png", str(atoms.symbols.get_chemical_formula()))]
    for file in files:
        console.line(f"wrote {file}")


def _long_waves(console: Console, found: Phonons, atoms: Atoms, born: Path | None) -> LongWaves | None:
    """What splits LO and TO; None, with a warning, where the model has nothing of the kind."""
    from lrpot.errors import ConfigError, StructureError
    from lrpot.workflows.nac import long_waves_of_file, long_waves_of_model
    from lrpot.workflows.phonons import supercell_of

    if born is not None:
        return long_waves_of_file(born, found.phonopy.primitive)
    try:
        return long_waves_of_model(atoms.calc.model, *supercell_of(found.phonopy))
    except (ConfigError, StructureError) as error:
        console.warn(f"LO and TO are not split: {str(error).split(';')[0]}; --born FILE splits them by other charges")
        return None


def _show(console: Console, found: Phonons, title: str) -> None:
    """Modes at Gamma, then what else is worth knowing."""
    from lrpot.units import PLANCK, WAVE_NUMBER
    from lrpot.workflows.phonons import UNSTABLE

    plain, splittings = found.at_gamma(), found.splittings()
    header = ["mode", "THz", "1/cm", "meV"]
    header += [f"towards Gamma along {''.join(map(str, direction))} (THz)" for direction in splittings]
    lines = []
    for mode, f in enumerate(plain):
        split = [f"{frequencies[mode]:.4f}" for frequencies in splittings.values()]
        lines.append([str(mode + 1), f"{f:.4f}", f"{WAVE_NUMBER * f:.2f}", f"{1e3 * PLANCK * f:.3f}", *split])
    console.table(title, header, lines)
    n, displaced = len(found.phonopy.supercell), len(found.phonopy.displacements)
    console.line(
        f"{displaced} displacements in {n} atoms; the acoustic sum rule changed force constants by up to "
        f"{found.force_drift:.1e} eV/A^2"
    )
    if found.long_waves is not None:
        z = ", ".join(
            f"{symbol} {_mean(tensor):+.3f}"
            for symbol, tensor in zip(found.phonopy.primitive.symbols, found.long_waves.born, strict=True)
        )
        epsilon = _mean(found.long_waves.dielectric)
        console.line(f"LO-TO splitting by {found.long_waves.source}: {z} e, dielectric constant {epsilon:.3f}")
    console.line(f"zero-point energy {found.zero_point_energy:.5f} eV per primitive cell")
    if found.lowest < UNSTABLE:
        console.warn(
            f"imaginary frequencies, down to {found.lowest:.3f} THz (drawn negative): the crystal is no minimum of the "
            "model, or the supercell is too small"
        )


def _mean(tensor: np.ndarray) -> float:
    """A third of the trace."""
    return float(tensor.trace()) / 3.0
