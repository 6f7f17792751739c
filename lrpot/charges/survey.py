"""What a set of frames holds: a first look, frame by frame, that says how its equations are to be laid out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from scipy.linalg import null_space

from lrpot.charges.force_features import sum_groups
from lrpot.charges.molecules import LONGEST_BOND, molecules
from lrpot.data.neighbours import add_edges
from lrpot.structure import Structure

# A frame whose forces are larger than this multiple of the lower quartile is left out: it would outweigh all others,
# and short pair functions do not describe atoms that are pushed into each other.
LARGE_FORCES = 4.0

# eV/A: smaller forces are zero by symmetry, but for the noise of first-principles methods.
FORCE_FREE = 1e-3

# Of the other frames, those with forces below the fraction RELAXED of what the share EXCEEDED of them exceeds are
# relaxed, and say nothing about what is large. Relaxed frames may be the most; clashing ones are fewer than that share.
RELAXED, EXCEEDED = 0.01, 0.1


@dataclass
class Survey:
    """Counts over all usable frames.

    Attributes:
        n_frames: usable ones: periodic in all directions, with forces.
        n_unusable: others.
        force_sizes: eV/A, root mean square of each usable frame's forces (on molecules, where those are summed).
        compositions: how many neutral frames have each composition, as ((number, count), ...).
        atoms: by atomic number.
    """

    n_frames: int = 0
    n_unusable: int = 0
    force_sizes: list[float] = field(default_factory=list)
    compositions: Counter[tuple[tuple[int, int], ...]] = field(default_factory=Counter)
    atoms: Counter[int] = field(default_factory=Counter)

    @property
    def elements(self) -> tuple[int, ...]:
        return tuple(sorted(self.atoms))

    @property
    def smallest_size(self) -> float:
        """eV/A; frames with smaller forces are relaxed."""
        sizes = np.array(self.force_sizes)
        noise = FORCE_FREE if sizes.max() > FORCE_FREE else 0.0
        return max(noise, RELAXED * float(np.quantile(sizes[sizes > noise], 1.0 - EXCEEDED)))

    @property
    def largest_size(self) -> float:
        """eV/A; frames with larger forces are left out."""
        sizes = np.array(self.force_sizes)
        return LARGE_FORCES * float(np.quantile(sizes[sizes >= self.smallest_size], 0.25))

    @property
    def n_telling(self) -> int:
        """Frames that are neither relaxed nor left out."""
        sizes = np.array(self.force_sizes)
        return int(((sizes >= self.smallest_size) & (sizes <= self.largest_size)).sum())

    @property
    def n_too_large(self) -> int:
        """Frames that are left out for their forces."""
        return int((np.array(self.force_sizes) > self.largest_size).sum())


def usable_frames(
    frames: Iterable[Structure], reach: float, *, sum_molecules: bool
) -> Iterator[tuple[Structure, np.ndarray] | None]:
    """Every frame with edges up to `reach` (A) and the group of each atom; None for one that cannot be used."""
    for frame in frames:
        if "forces" not in frame or not bool(frame.pbc.all()):
            yield None
            continue
        structure = add_edges(copy.copy(frame), reach)  # shallow: the caller's keeps its own edges
        yield structure, molecules(structure) if sum_molecules else np.arange(structure.num_nodes)


def survey(frames: Iterable[Structure], *, sum_molecules: bool, progress: Callable[[int], None]) -> Survey:
    """Look at every frame once.

    Args:
        frames: labelled structures.
        sum_molecules: whether atoms of one molecule are one group.
        progress: called with the number of frames seen.
    """
    found = Survey()
    for seen, usable in enumerate(usable_frames(frames, LONGEST_BOND, sum_molecules=sum_molecules), 1):
        if usable is None:
            found.n_unusable += 1
        else:
            structure, group = usable
            counts = Counter(structure.numbers.tolist())
            found.n_frames += 1
            found.force_sizes.append(force_size(structure, group))
            found.atoms.update(counts)
            if float(structure.total_charge) == 0.0:
                found.compositions[tuple(sorted(counts.items()))] += 1
        progress(seen)
    return found


def force_size(structure: Structure, group: np.ndarray) -> float:
    """eV/A, root mean square of the forces on all groups."""
    return float(np.sqrt((sum_groups(structure.forces.numpy(), group) ** 2).mean()))


def neutral_charges(found: Survey) -> np.ndarray:
    """(M, M') basis of the charges by element for which the cells are neutral.

    A composition that would force the charge of an element to zero, with those that are more frequent, is that of a
    defect or of a pure element, and is left out. Cells of a known total charge say nothing: their effective charge is
    a screened one.
    """
    elements = found.elements
    basis = np.eye(len(elements))
    kept: list[list[float]] = []
    for composition, _ in sorted(found.compositions.items(), key=lambda item: (-item[1], item[0])):
        counts = dict(composition)
        row = np.array([counts.get(z, 0) for z in elements], dtype=float)
        row /= row.sum()
        if np.abs(row @ basis).max() < 1e-9:
            continue
        narrower = null_space(np.array([*kept, row]), rcond=1e-9)
        if narrower.shape[1] and np.linalg.norm(narrower, axis=1).min() > 1e-6:
            basis = narrower
            kept.append(list(row))
    return basis


def formula(composition: Iterable[tuple[int, int]]) -> str:
    """((1, 2), (8, 1)) -> "H2O"."""
    return Formula.from_dict({chemical_symbols[z]: n for z, n in composition}).format("hill")
