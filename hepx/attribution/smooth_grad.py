"""SmoothGrad: saliency averaged over small random changes of the event.

Smilkov et al., arXiv:1706.03825; with captum's saliency, as its NoiseTunnel would average it, but with noise that
belongs to the event (captum's comes from a global state, so that a result would depend on the batch).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx import random
from hepx.attribution.base import Method, Subject, chunks_of, event_table, in_chunks, mean_and_error
from hepx.attribution.gradients import PER_SPREAD, spreads
from hepx.attribution.saliency import sensitivity
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class SmoothGrad(Method):
    """Mean |∂score/∂feature| times the spread of the feature, over `draws` events with Gaussian noise.

    noise: standard deviation of the noise in units of the spread of the feature among the baseline events.
    """

    needs_gradients: ClassVar[bool] = True
    method: Literal["smooth_grad"] = "smooth_grad"
    draws: int = Field(default=16, ge=2)
    noise: float = Field(default=0.1, gt=0)
    events: int = Field(default=500, ge=1)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] ≥ 0 with their standard error over the noise; no completeness error, as for saliency."""
        unit = spreads(subject.baseline)

        def compute(chosen: Tensor) -> dict[str, Tensor]:
            events = subject.graphs[chosen]
            noisy = events.x[:, None] + noise(events, self.draws, subject.seed) * self.noise * unit
            slope, score = sensitivity(subject.model, noisy, events, subject.target)
            values, error = mean_and_error((slope * unit).double())
            return {"values": values, "error": error, "score": score}

        parts = chunks_of(len(subject.graphs), 2 * self.draws)
        return Explanation(
            events=event_table(subject.graphs),
            **in_chunks(len(subject.graphs), ((part, compute) for part in parts)),
            baseline_score=None,
            completeness_error=None,
            interactions=None,
            interactions_error=None,
            unit=PER_SPREAD,
            provenance=provenance,
        )


def noise(events: GraphBatch, draws: int, seed: int) -> Float[Tensor, "b K N F"]:
    """Standard normal numbers that belong to the event and the name of the slot."""
    width, ids = events.x.shape[-1], events.event_id.numpy()
    numbers = [random.uniform(seed, ids, f"noise {slot}", draws * width) for slot in events.layout.slots]
    inside = torch.from_numpy(np.stack(numbers, 1)).unflatten(2, (draws, width)) + 2.0**-54  # in (0, 1)
    return torch.special.ndtri(inside).permute(0, 2, 1, 3).to(events.x)
