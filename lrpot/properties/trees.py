"""Extremely randomised trees as a head: grown once from the training set, then walked as plain tensors.

A tree asks, node by node, whether one statistic of a crystal is above a threshold, and says the mean of the training
crystals that came to the same leaf. Thresholds are drawn at random, the best of one for each statistic is kept, and a
prediction is the mean over all trees. On a few hundred crystals this is often better than any network.

scikit-learn grows the trees; a model predicts without it.

Source: Geurts, Ernst and Wehenkel, Mach. Learn. 63, 3 (2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import ConfigError
from lrpot.properties.features import CrystalFeatures, atom_counts
from lrpot.properties.heads import HeadOutput

# Steps of a statistic in its standard deviation. Trees see whole steps, so that sums over atoms in another order, or
# over more cells of the same crystal, come to the same leaves.
STEPS = 4096

# What is stored of the nodes of all trees.
_NODES = ("feature", "threshold", "branches", "value")


class TreesHead(nn.Module):
    """Trees of its own for each target.

    The nodes of all trees lie one after the other, those of a tree from its root on; a child comes after its parent,
    and a leaf is its own child.

    Attributes:
        roots: (T, trees), first node of each tree.
        feature: (nodes,), which statistic a node asks for. threshold: (nodes,), in `STEPS`; what is above goes right.
        branches: (nodes, 2), left and right.
        value: (nodes,), mean of what is learned over the training crystals at a leaf; 0 elsewhere.
    """

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    branches: Tensor
    value: Tensor

    def __init__(
        self,
        inputs: int,
        extensive: Sequence[bool],
        classes: Sequence[bool],
        trees: int = 300,
        max_features: float = 1.0,
        min_leaf: int = 1,
    ) -> None:
        """
        Args:
            inputs: number of statistics.
            extensive, classes: of each target, whether it grows with the cell, and whether it is a class.
            trees: for each target. max_features: share of the statistics that a split chooses from. min_leaf: fewest
                training crystals at a leaf.
        """
        super().__init__()
        self.inputs, self.trees, self.max_features, self.min_leaf = inputs, trees, max_features, min_leaf
        self.extensive, self.classes = tuple(extensive), tuple(classes)
        n = len(self.extensive) * trees
        # every tree a leaf that says the mean of the training set; of a class, that both are as likely
        start = torch.tensor([0.5 if is_class else 0.0 for is_class in classes])
        self.register_buffer("roots", torch.arange(n, dtype=torch.int32).view(-1, trees))
        self.register_buffer("feature", torch.zeros(n, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(n, dtype=torch.int32))
        self.register_buffer("branches", torch.arange(n, dtype=torch.int32)[:, None].repeat(1, 2))
        self.register_buffer("value", start.repeat_interleave(trees))

    def forward(self, features: CrystalFeatures, batch: Data) -> HeadOutput:
        """Values (G, T); of a class the logit of its probability, of an extensive target a sum over atoms."""
        means = self.means(features.graph)
        columns = []
        for column, extensive, is_class in zip(means.unbind(dim=1), self.extensive, self.classes, strict=True):
            if is_class:
                column = column.logit()
            columns.append(column * atom_counts(batch) if extensive else column)
        return HeadOutput(torch.stack(columns, dim=1), means.new_zeros(()))

    def means(self, graph: Tensor) -> Tensor:
        """(G, T) means over the trees of each target, of statistics (G, inputs) in standard deviations."""
        asked = steps(graph)
        node = self.roots.flatten().long().expand(len(graph), -1)
        while True:
            right = asked.gather(1, self.feature[node].long()) > self.threshold[node]
            further = self.branches[node, right.long()].long()
            if torch.equal(further, node):
                return self.value[node].unflatten(1, self.roots.shape).mean(dim=2)
            node = further

    def grow(self, graph: Tensor, wanted: Tensor, seed: int) -> None:
        """Grow all trees anew.

        Args:
            graph: (n, inputs) statistics of the training set, in standard deviations.
            wanted: (n, T) what is learned of them; nan where there is no label, which no tree of that target sees.
            seed: the same one gives the same trees.
        Raises:
            ConfigError: scikit-learn is not installed.
        """
        regressor = scikit_learn_trees()
        asked = steps(graph).cpu()
        grown = []
        for column in wanted.cpu().unbind(dim=1):
            known = column.isfinite()
            # of a class too: the variance of 0 and 1 ranks splits as their Gini impurity does
            forest = regressor(
                n_estimators=self.trees,
                max_features=self.max_features,
                min_samples_leaf=self.min_leaf,
                random_state=seed % 2**32,  # numpy takes no larger seeds
                n_jobs=torch.get_num_threads(),
            )
            forest.fit(asked[known].numpy(), column[known].numpy())
            grown += [_nodes(tree.tree_) for tree in forest.estimators_]
        sizes = torch.tensor([len(nodes["feature"]) for nodes in grown])
        starts = sizes.cumsum(0) - sizes
        for nodes, start in zip(grown, starts.tolist(), strict=True):
            nodes["branches"] += start
        for name in _NODES:
            own = getattr(self, name)
            setattr(self, name, torch.cat([nodes[name] for nodes in grown]).to(own))
        self.roots.copy_(starts.view_as(self.roots))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        """Trees of a file have as many nodes as they have; all must lead to a leaf."""
        missing, unexpected, messages = rest
        names = [name for name in (*_NODES, "roots") if prefix + name in state_dict]
        found: dict[str, Tensor] = {name: state_dict[prefix + name] for name in names}
        if len(found) == len(_NODES) + 1:
            wrong = self._what_is_wrong(**found)
            if wrong:
                messages.append(f"{prefix}{wrong}")
                return
            for name in _NODES:
                own = getattr(self, name)
                setattr(self, name, torch.empty(found[name].shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, messages)

    def _what_is_wrong(
        self, feature: Tensor, threshold: Tensor, branches: Tensor, value: Tensor, roots: Tensor
    ) -> str | None:
        """Of such tensors, why they are no trees."""
        n = len(value) if value.dim() == 1 else 0
        if n == 0 or feature.shape != (n,) or threshold.shape != (n,) or branches.shape != (n, 2):
            return "value: its nodes are not those of feature, threshold and branches"
        if any(tensor.is_floating_point() for tensor in (feature, threshold, branches, roots)):
            return "branches: nodes are no whole numbers"
        if bool((feature < 0).any()) or bool((feature >= self.inputs).any()):
            return f"feature: asks for statistics that are none of the {self.inputs}"
        if bool((roots < 0).any()) or bool((roots >= n).any()):
            return f"roots: name nodes that are none of the {n}"
        node = torch.arange(n, device=branches.device)[:, None]
        leaf = (branches == node).all(dim=1)
        inner = ((branches > node) & (branches < n)).all(dim=1)
        return None if bool((leaf | inner).all()) else "branches: a node leads back, or nowhere"


def steps(graph: Tensor) -> Tensor:
    """Statistics in standard deviations as whole numbers of `STEPS`, int32."""
    return (graph * STEPS).round().to(torch.int32)


def scikit_learn_trees() -> Any:
    """scikit-learn's class of extremely randomised trees; loaded when trees are grown.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError as error:
        raise ConfigError(
            f"head trees is grown by scikit-learn, which cannot be loaded ({error}); pip install 'lrpot[trees]' (a "
            "model that is fitted predicts without it)"
        ) from error
    return ExtraTreesRegressor


def _nodes(tree: Any) -> dict[str, Tensor]:
    """A tree of scikit-learn as tensors, from node 0."""
    own = torch.arange(tree.node_count)
    left, right = torch.from_numpy(tree.children_left), torch.from_numpy(tree.children_right)
    leaf = left < 0
    return {
        "feature": torch.from_numpy(tree.feature).clamp(min=0),
        # of whole numbers, those above a threshold are those above the whole number below it
        "threshold": torch.where(leaf, 0.0, torch.from_numpy(tree.threshold)).floor(),
        "branches": torch.stack([torch.where(leaf, own, left), torch.where(leaf, own, right)], dim=1),
        "value": torch.where(leaf, torch.from_numpy(tree.value)[:, 0, 0], 0.0),
    }
