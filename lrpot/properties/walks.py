"""Where an atom stands in its graph: how probable it is that a random walk returns to it.

A step goes from an atom to one of the atoms that its edges come from, each with the same probability.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from lrpot.structure import Structure

# Steps of a walk, at most.
STEPS = 6

# Of the published encoding: eigenvectors of the Laplacian, and steps of walks; 40 numbers together.
EIGENVECTORS = PUBLISHED_STEPS = 20


def walk_returns(structure: Structure) -> Tensor:
    """(N, STEPS) float64: probabilities that a walk of 1, 2, ... steps ends at its own atom, in its own image.

    An image is another place; so a larger cell of the same crystal has the same walks.

    Args:
        structure: one crystal with edges.
    """
    neighbour, centre = structure.edge_index.cpu().numpy()
    shift = structure.edge_shift.cpu().numpy().astype(np.int64)
    n = len(structure.numbers)
    one = np.column_stack([centre, neighbour, shift]), 1.0 / np.bincount(centre, minlength=n)[centre]
    walks = [one]
    while len(walks) < -(-STEPS // 2):
        walks.append(_walk_on(*walks[-1], *one, n))
    columns = []
    for steps in range(1, STEPS + 1):
        if steps == 1:
            places, values = one
            home = (places[:, 0] == places[:, 1]) & (places[:, 2:] == 0).all(axis=1)
            columns.append(np.bincount(places[home, 0], weights=values[home], minlength=n))
        else:
            columns.append(_meetings(walks[-(-steps // 2) - 1], walks[steps // 2 - 1], n))
    return torch.from_numpy(np.stack(columns, axis=1)).to(structure.numbers.device)


def _walk_on(
    places: np.ndarray, values: np.ndarray, step: np.ndarray, weights: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Walks with one step more: (W, 5) start, end and image of the end; (W,) probabilities."""
    first = np.searchsorted(step[:, 0], np.arange(n))
    counts = np.bincount(step[:, 0], minlength=n)
    each = counts[places[:, 1]]
    walk = np.repeat(np.arange(len(places)), each)
    taken = first[places[walk, 1]] + np.arange(len(walk)) - np.repeat(each.cumsum() - each, each)
    ends = np.column_stack([places[walk, 0], step[taken, 1], places[walk, 2:] + step[taken, 2:]])
    _, chosen, group = np.unique(_numbered(ends), return_index=True, return_inverse=True)
    return ends[chosen], np.bincount(group, weights=values[walk] * weights[taken], minlength=len(chosen))


def _meetings(out: tuple[np.ndarray, np.ndarray], back: tuple[np.ndarray, np.ndarray], n: int) -> np.ndarray:
    """(n,): the sum over places x of P(i -> x) P(x -> i); the way back is found in the image where x is at home."""
    (places, values), (backs, weights) = out, back
    mirrored = np.column_stack([backs[:, 1], backs[:, 0], -backs[:, 2:]])
    _, number = np.unique(_numbered(np.concatenate([places, mirrored])), return_inverse=True)
    there, again = number[: len(places)], number[len(places) :]
    probability = np.zeros(len(number))
    probability[again] = weights
    return np.bincount(places[:, 0], weights=values * probability[there], minlength=n)


def _numbered(rows: np.ndarray) -> np.ndarray:
    """A number for each row of integers (W, C), the same for equal rows: quicker to sort than the rows."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    rows = rows - rows.min(axis=0)
    return np.ravel_multi_index(tuple(rows.T), tuple(rows.max(axis=0) + 1))


def published_encoding(structure: Structure) -> Tensor:
    """(N, 40) float64: eigenvectors of the Laplacian from the second lowest on, and returns of walks to any image.

    What the paper concatenates, in the graph of the cell: it changes with the cell, signs of eigenvectors are arbitrary
    and so are those of equal eigenvalue. Of the Laplacian 1 - D^-1/2 A D^-1/2, A counts edges in both directions.

    Args:
        structure: one crystal with edges.
    """
    neighbour, centre = structure.edge_index.cpu().numpy()
    n = len(structure.numbers)
    ones = np.ones(len(centre))
    steps = csr_array((ones, (centre, neighbour)), shape=(n, n)).toarray()
    both = 0.5 * (steps + steps.T)
    root = 1.0 / np.sqrt(np.maximum(both.sum(axis=1), 1.0))
    vectors = np.linalg.eigh(np.eye(n) - root[:, None] * both * root)[1][:, 1 : 1 + EIGENVECTORS]
    walk = steps / np.maximum(steps.sum(axis=1, keepdims=True), 1.0)
    power, returns = np.eye(n), []
    for _ in range(PUBLISHED_STEPS):
        power = power @ walk
        returns.append(power.diagonal())
    padding = np.zeros((n, EIGENVECTORS - vectors.shape[1]))
    found = np.column_stack([vectors, padding, *returns])
    return torch.from_numpy(found).to(structure.numbers.device)
