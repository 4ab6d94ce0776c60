"""Gradient-boosted trees as a model of the registry: the baseline that is no network.

They are grown by scikit-learn (histograms; Ke et al., LightGBM, NeurIPS 2017), all at once and not by gradient steps,
and then kept as tensors, so that weights, copies and explanations are those of any model. Scores are scikit-learn's to
rounding. The table that the trees see is made of the objects anew for every call: replace an object, and its
observables follow. The score moves in steps, so it has no gradient.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from hepx import trees
from hepx.config import Settings
from hepx.errors import ConfigError
from hepx.graph import DEFINED, Layout
from hepx.kinematics import HIGH_LEVEL
from hepx.models.base import Model, Output, empty_trace, require_gradients
from hepx.models.inputs import Inputs
from hepx.models.tables import HAS, node_observables, node_table

PER_PASS = 2**18  # events × trees that are followed at once: more leave the cache


class BoostedTreesSettings(Settings):
    """What the trees see and how they are grown.

    inputs: `observables`, fifteen of the nodes (m_bb, m_T, …; `hepx.kinematics.HIGH_LEVEL`), or `nodes`, the raw
    features of the nodes side by side. Trees are added, each of at most `max_leaves` leaves and shrunk by
    `learning_rate`, until the validation loss has not become better for `patience` of them, or there are `max_trees`.

    Of the settings of the training only weights, validation_events and track have a meaning here; others that are set
    are named in the log, or refused (from, snapshots, node_dropout). Whatever `keep` says, the table of the training
    events, 8 bytes per number, is in memory. Trees take no negative weights: they are grown with |w|, both classes of
    equal total.
    """

    name: Literal["boosted_trees"] = "boosted_trees"
    inputs: Literal["observables", "nodes"] = "observables"
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    max_trees: int = Field(default=2000, ge=1)
    max_leaves: int = Field(default=31, ge=2, le=2**13)
    patience: int = Field(default=trees.PATIENCE, ge=1)


class BoostedTrees(Model):
    """Nodes of all trees as buffers [trees, nodes], as large as the settings allow; logits ∓ half the sum of leaves.

    An event at a node goes to `child` if its `column` is not above `threshold`, else to `child` + 1. Column v of V is
    the v-th number, NaN always above; V + v the same, NaN always below; 2 V is 0, by which leaves, and trees that are
    not there, lead to themselves. start: the score before the first tree, constant until the trees are grown.
    """

    differentiable: ClassVar[bool] = False
    child: Tensor
    column: Tensor
    threshold: Tensor
    value: Tensor
    num_trees: Tensor
    depth: Tensor

    def __init__(self, settings: BoostedTreesSettings, layout: Layout, num_classes: int) -> None:
        super().__init__()
        if num_classes != 2:
            raise ConfigError(
                f"model.name=boosted_trees: expected two classes, got {num_classes}. Give the samples labels 0 and 1, "
                "or choose another model."
            )
        self.settings, self.types = settings, layout.types
        self.inputs = Inputs(layout, (), ())
        every = sum(len(DEFINED[kind]) for kind in self.types)
        self.num_columns = len(HIGH_LEVEL) if settings.inputs == "observables" else every
        self.start = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)
        for name, nodes in self._no_trees().items():
            self.register_buffer(name, nodes)
        self.register_buffer("num_trees", torch.zeros((), dtype=torch.int64))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int64))

    def _no_trees(self) -> dict[str, Tensor]:
        """Nodes that are leaves of value 0."""
        shape = (self.settings.max_trees, 2 * self.settings.max_leaves - 1)
        return {
            "child": torch.arange(shape[1], dtype=torch.int16).expand(shape).clone(),
            "column": torch.full(shape, 2 * self.num_columns, dtype=torch.int16),
            "threshold": torch.zeros(shape, dtype=torch.float64),
            "value": torch.zeros(shape, dtype=torch.float64),
        }

    @property
    def knows_places(self) -> bool:
        """See `Model`."""
        return self.settings.inputs == "nodes"

    @property
    def num_fitted(self) -> int:
        """Thresholds and values of the leaves of all trees."""
        return int(self._leaves().sum()) * 2 - int(self.num_trees)

    def _leaves(self) -> Bool[Tensor, "T M"]:
        """Which nodes are leaves that some event may reach: node 0, and the children of others, without children."""
        own = torch.arange(self.child.shape[1], device=self.child.device)
        inner, reached = self.child != own, torch.zeros_like(self.child, dtype=torch.bool)
        reached[: int(self.num_trees), 0] = True
        for side in (0, 1):
            tree, node = torch.nonzero(inner, as_tuple=True)
            reached[tree, self.child[tree, node].long() + side] = True
        return reached & ~inner

    def shuffle(self, generator: torch.Generator) -> None:
        """Exchange the values of the leaves."""
        leaves = self._leaves()
        values = self.value[leaves]
        self.value[leaves] = values[torch.randperm(len(values), generator=generator).to(values.device)]

    def table(
        self, x: Float[Tensor, "B N F"], mask: Bool[Tensor, "B N"], node_type: Int[Tensor, "B N"]
    ) -> npt.NDArray[np.float64]:
        """What the trees see of events [B, V]; NaN where an object is absent."""
        values, present, kinds = (tensor.detach().cpu().numpy() for tensor in (x, mask, node_type))
        if self.settings.inputs == "nodes":
            return node_table(values, present, self.types).astype(np.float64)
        return node_observables(values, present, kinds)

    def grow(self, train: trees.Table, validation: trees.Table, seed: int) -> trees.Trees:
        """Grow the trees on tables of training events until those of validation are not told apart better; returns them
        as scikit-learn has them."""
        chosen = self.settings
        fitted = trees.fit(
            train, validation, seed, chosen.learning_rate, chosen.max_trees, chosen.max_leaves, chosen.patience
        )
        self._take(fitted)
        return fitted

    @torch.no_grad()
    def _take(self, fitted: trees.Trees) -> None:
        """Put fitted trees into the buffers."""
        whole, known = trees.nodes_of(fitted.estimator), np.flatnonzero(fitted.known)
        arrays = {name: nodes.numpy() for name, nodes in self._no_trees().items()}
        for number, nodes in enumerate(whole):
            inner, place = np.flatnonzero(nodes["is_leaf"] == 0), np.arange(len(nodes))
            for i, parent in enumerate(inner):  # a parent stands before its children, which get places side by side
                place[[nodes["left"][parent], nodes["right"][parent]]] = 2 * i + 1, 2 * i + 2
            split, to = nodes[inner], place[inner]
            arrays["child"][number, to] = place[split["left"]]
            arrays["column"][number, to] = known[split["feature_idx"]] + self.num_columns * split["missing_go_to_left"]
            arrays["threshold"][number, to] = split["num_threshold"]
            arrays["value"][number, place] = nodes["value"]
        for name, array in arrays.items():
            getattr(self, name).copy_(torch.from_numpy(array))
        self.start.fill_(trees.start_of(fitted.estimator))
        self.num_trees.fill_(len(whole))
        self.depth.fill_(max(int(nodes["depth"].max()) for nodes in whole))

    def forward(
        self,
        x: Float[Tensor, "B N F"],
        mask: Bool[Tensor, "B N"],
        node_type: Int[Tensor, "B N"],
        routing: Bool[Tensor, "B L N X"] | None = None,
        noise: Float[Tensor, "B L N X"] | None = None,
        gain: Float[Tensor, "B L H N N"] | None = None,
        pair_terms: tuple[Tensor, ...] | None = None,
    ) -> Output:
        """Classify events, logits in float64; there is no routing and no attention.

        ConfigError where a gradient is asked for. A number that is missing in an object makes the logits NaN.
        """
        if x.requires_grad and torch.is_grad_enabled():
            require_gradients(self, "a gradient of the score")
        score = self.start + self._sum(torch.from_numpy(self.table(x, mask, node_type)).to(self.value.device))
        used = torch.from_numpy(HAS).to(node_type.device)[node_type] & mask[..., None]
        score = torch.where((x.isnan() & used).any((1, 2)), torch.nan, score)
        return Output(torch.stack([-score / 2, score / 2], -1), empty_trace(mask, 0))

    def _sum(self, table: Float[Tensor, "B V"]) -> Float[Tensor, "B"]:
        """Sum of the leaves that events reach: all trees at once, one step down at a time."""
        number, width = int(self.num_trees), self.child.shape[1]
        root = torch.arange(number, device=table.device) * width
        child = (self.child[:number] + root[:, None]).flatten()
        column, threshold, value = (one[:number].flatten() for one in (self.column.long(), self.threshold, self.value))
        below = torch.where(table.isnan(), -torch.inf, table)
        wide = torch.cat([table, below, table.new_zeros(len(table), 1)], 1)
        found = [table.new_zeros(0)]
        for rows in wide.split(max(1, PER_PASS // max(1, number))):
            at = root.expand(len(rows), number)
            for _ in range(int(self.depth)):
                at = child[at] + ~(rows.gather(1, column[at]) <= threshold[at])
            found.append(value[at].sum(1))
        return torch.cat(found)
