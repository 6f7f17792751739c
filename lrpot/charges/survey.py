"""What a set of frames holds: a first look, frame by frame, that says how its equations are to be laid out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from scipy.linalg import null_space

from lrpot.charges.force_features import sum_groups
from lrpot.charges.molecules import molecules
from lrpot.data.neighbours import add_edges
from lrpot.structure import Structure, edge_vectors

# A frame whose forces are larger than this multiple of the median frame's is left out: far from where all others
# are, it would outweigh them, and short pair functions do not describe it.
LARGE_FORCES = 4.0

# A, bins in which neighbours are counted.
BIN = 0.1

Report = Callable[[int], None]


@dataclass
class Survey:
    """Counts over all usable frames.

    Attributes:
        n_frames: usable ones: periodic in all directions, with forces.
        n_unusable: others.
        force_sizes: eV/A, root mean square of each usable frame's forces (on molecules, where those are summed).
        compositions: how many neutral frames have each composition, as ((number, count), ...).
        molecules: how many molecules have each composition.
        atoms: by atomic number.
        neighbours: by pair of atomic numbers, counts in bins of the distance, of atoms in different molecules.
    """

    n_frames: int = 0
    n_unusable: int = 0
    force_sizes: list[float] = field(default_factory=list)
    compositions: Counter[tuple[tuple[int, int], ...]] = field(default_factory=Counter)
    molecules: Counter[tuple[tuple[int, int], ...]] = field(default_factory=Counter)
    atoms: Counter[int] = field(default_factory=Counter)
    neighbours: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def elements(self) -> tuple[int, ...]:
        return tuple(sorted(self.atoms))

    @property
    def largest_size(self) -> float:
        """eV/A; frames with larger forces are left out."""
        return LARGE_FORCES * float(np.median(self.force_sizes))

    @property
    def n_too_large(self) -> int:
        """Frames that are left out for their forces."""
        return int((np.array(self.force_sizes) > self.largest_size).sum())

    def shells(self) -> dict[tuple[int, int], float]:
        """A, by pair of elements: within which distance an atom of the rarer one has one neighbour on average; inf
        for pairs that hardly ever meet."""
        found = {}
        for a, b in combinations_with_replacement(self.elements, 2):
            counts = np.cumsum(self.neighbours.get((a, b), np.zeros(1)))
            # a pair of unlike atoms was counted from both ends
            met = counts >= min(self.atoms[a], self.atoms[b]) * (1.0 if a == b else 2.0)
            found[a, b] = BIN * (1 + int(met.argmax())) if met.any() else np.inf
        return found


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


def survey(frames: Iterable[Structure], reach: float, *, sum_molecules: bool, progress: Report | None = None) -> Survey:
    """Look at every frame once.

    Args:
        frames: labelled structures.
        reach: A, how far neighbours are counted.
        sum_molecules: whether atoms of one molecule are one group.
        progress: called with the number of frames seen.
    """
    found = Survey()
    for seen, usable in enumerate(usable_frames(frames, reach, sum_molecules=sum_molecules), 1):
        if usable is None:
            found.n_unusable += 1
        else:
            _count(found, *usable, reach)
        if progress is not None:
            progress(seen)
    return found


def _count(found: Survey, structure: Structure, group: np.ndarray, reach: float) -> None:
    numbers = structure.numbers.numpy()
    found.n_frames += 1
    found.force_sizes.append(force_size(structure, group))
    counts = Counter(numbers.tolist())
    found.atoms.update(counts)
    if float(structure.total_charge) == 0.0:
        found.compositions[tuple(sorted(counts.items()))] += 1
    sizes = np.bincount(group)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        if len(members) > 1:
            found.molecules[tuple(sorted(Counter(numbers[members].tolist()).items()))] += 1
    neighbour, centre = structure.edge_index.numpy()
    apart = group[neighbour] != group[centre]
    # single atoms have images of themselves as neighbours too
    apart |= (sizes[group[centre]] == 1) & (neighbour == centre)
    distance = np.linalg.norm(edge_vectors(structure).numpy()[apart], axis=1)
    low, high = np.sort(numbers[structure.edge_index.numpy()[:, apart]], axis=0)
    bins = int(np.ceil(reach / BIN))
    key = (low * 1000 + high) * bins + np.minimum((distance / BIN).astype(int), bins - 1)
    for code, count in zip(*np.unique(key, return_counts=True), strict=True):
        pair = divmod(int(code) // bins, 1000)
        found.neighbours.setdefault(pair, np.zeros(bins))[int(code) % bins] += count


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
