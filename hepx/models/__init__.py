"""Graph classifiers. Adding one = one file with a settings class and a final `Model`, and one line below."""

from __future__ import annotations

from typing import Any

import torch

from hepx.config import Settings
from hepx.graph import Layout
from hepx.models.base import Model, Output, Trace, batches, log_odds, predict, require_gradients
from hepx.models.boosted_trees import BoostedTrees, BoostedTreesSettings
from hepx.models.deepsets import DeepSets, DeepSetsSettings
from hepx.models.flaws import flaws, symmetries
from hepx.models.gcn import GCN, GCNSettings
from hepx.models.graph_transformer import GraphTransformer, GraphTransformerSettings, MoEGraphTransformerSettings
from hepx.models.mlp import MLP, MLPSettings
from hepx.models.paper import PaperMGT, PaperMGTSettings
from hepx.models.particle_transformer import ParticleTransformer, ParticleTransformerSettings

__all__ = [
    "MODELS",
    "Model",
    "Output",
    "Trace",
    "batches",
    "build_model",
    "flaws",
    "log_odds",
    "predict",
    "require_gradients",
    "symmetries",
]

MODELS: dict[str, tuple[type[Settings], type[Any]]] = {
    "moe_graph_transformer": (MoEGraphTransformerSettings, GraphTransformer),
    "graph_transformer": (GraphTransformerSettings, GraphTransformer),
    "paper_mgt": (PaperMGTSettings, PaperMGT),
    "particle_transformer": (ParticleTransformerSettings, ParticleTransformer),
    "gcn": (GCNSettings, GCN),
    "deepsets": (DeepSetsSettings, DeepSets),
    "mlp": (MLPSettings, MLP),
    "boosted_trees": (BoostedTreesSettings, BoostedTrees),
}
"""Name in the config -> (settings, model class)."""


def build_model(settings: Any, layout: Layout, seed: int) -> Model:
    """A fresh model with weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = MODELS[settings.name][1](settings, layout, layout.num_classes)
    return model
