"""Explanation methods. Adding one = one file with a frozen `Method`, and one line below. captum stays here."""

from __future__ import annotations

from hepx.attribution.base import Method, Subject, event_table, subsample
from hepx.attribution.baselines import background_events
from hepx.attribution.blocks import Shard, explain, explain_blocks, merge_blocks
from hepx.attribution.deeplift import DeepLift
from hepx.attribution.edge_knockout import EdgeKnockout
from hepx.attribution.expected_gradients import ExpectedGradients
from hepx.attribution.feature_groups import FeatureGroups
from hepx.attribution.gnn_explainer import GNNExplainer
from hepx.attribution.gradient_attention import GradientAttention
from hepx.attribution.gradient_shap import GradientShap
from hepx.attribution.input_x_gradient import InputXGradient
from hepx.attribution.integrated_gradients import IntegratedGradients
from hepx.attribution.occlusion import Occlusion
from hepx.attribution.owen import Owen
from hepx.attribution.permutation_importance import PermutationImportance
from hepx.attribution.response import Response
from hepx.attribution.saliency import Saliency
from hepx.attribution.shapley import Shapley
from hepx.attribution.smooth_grad import SmoothGrad

__all__ = [
    "METHODS",
    "Method",
    "Shard",
    "Subject",
    "background_events",
    "event_table",
    "explain",
    "explain_blocks",
    "merge_blocks",
    "subsample",
]

METHODS: dict[str, type[Method]] = {
    "shapley": Shapley,
    "feature_groups": FeatureGroups,
    "owen": Owen,
    "occlusion": Occlusion,
    "integrated_gradients": IntegratedGradients,
    "expected_gradients": ExpectedGradients,
    "gradient_shap": GradientShap,
    "deeplift": DeepLift,
    "input_x_gradient": InputXGradient,
    "saliency": Saliency,
    "smooth_grad": SmoothGrad,
    "permutation_importance": PermutationImportance,
    "response": Response,
    "edge_knockout": EdgeKnockout,
    "gradient_attention": GradientAttention,
    "gnn_explainer": GNNExplainer,
}
"""Name in the config -> method."""
