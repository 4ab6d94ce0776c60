"""Integrated gradients of raw features (pt, η, φ, mass, …) through captum, averaged over background donors.

Sundararajan et al., arXiv:1703.01365; averaging over baselines as in expected gradients (Erion et al.,
arXiv:1906.10670). Donors are turned so that their lepton points along the event's: the attribution of φ is that of Δφ
to the lepton, whose own φ gets none. The expert choice of the explained event is replayed
on the whole path (`routing: fixed`): through switches of a top-k router the score jumps, and no quadrature makes the
attributions complete.
"""

from __future__ import annotations

from typing import Literal

import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hepx.attribution import baselines
from hepx.attribution.base import Method, Subject, event_table
from hepx.errors import ResultError
from hepx.models import Model, log_odds
from hepx.models.inputs import PHI
from hepx.progress import progress
from hepx.results import Explanation, Provenance

ROWS = 4096  # rows per backward pass


class IntegratedGradients(Method):
    """Path integrals from `draws` donors to the event with `steps` Gauss–Legendre nodes.

    The result is refused when its relative completeness error exceeds `max_completeness_error`.
    """

    method: Literal["integrated_gradients"] = "integrated_gradients"
    baseline: Literal["background"] = "background"
    routing: Literal["fixed", "free"] = "fixed"
    draws: int = Field(default=4, ge=2)
    steps: int = Field(default=128, ge=2)
    events: int = Field(default=500, ge=1)
    max_completeness_error: float = Field(default=0.05, gt=0)

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the donors."""
        graphs, model = subject.graphs, subject.model
        model.eval()
        shape = (*graphs.x.shape,)
        values, error = torch.zeros(2, *shape, dtype=torch.float64)
        score, baseline_score, gap = torch.zeros(3, len(graphs), dtype=torch.float64)
        with progress("integrated gradients", len(graphs), " events") as advance:
            for pattern in baselines.patterns(graphs, subject.baseline):
                for index in pattern.index.split(max(1, ROWS // self.draws)):
                    events = graphs[index]
                    donors = baselines.draw(pattern, events, self.draws, subject.seed, aligned=True)
                    parts, ends = self._paths(model, events.x, events.mask, events.node_type, donors, subject.target)
                    values[index], error[index] = parts.mean(1), parts.std(1) / self.draws**0.5
                    score[index], baseline_score[index] = ends[0].mean(1), ends[1].mean(1)
                    gap[index] = (parts.sum((2, 3)) - (ends[0] - ends[1])).abs().mean(1)
                    advance(len(index))
        return Explanation(
            events=event_table(graphs),
            values=values.numpy(),
            error=error.numpy(),
            score=score.numpy(),
            baseline_score=baseline_score.numpy(),
            completeness_error=gap.numpy(),
            interactions=None,
            interactions_error=None,
            provenance=provenance,
        )

    def _paths(
        self, model: Model, x: Tensor, mask: Tensor, node_type: Tensor, donors: Float[Tensor, "b K N F"], target: int
    ) -> tuple[Float[Tensor, "b K N F"], Float[Tensor, "2 b K"]]:
        """Attributions of every path, and the score at its end and its start."""
        draws = donors.shape[1]
        device = next(model.parameters()).device
        x, mask, node_type = (t.to(device).repeat_interleave(draws, 0) for t in (x, mask, node_type))
        start = _nearest_phi(donors.flatten(0, 1).to(device), x)
        routing = None
        if self.routing == "fixed":
            with torch.inference_mode():
                routing = (model(x, mask, node_type).trace.gates > 0).clone()
        routing = routing if routing is not None and routing.shape[-1] else None

        def score(x: Tensor, mask: Tensor, node_type: Tensor, *routing: Tensor) -> Tensor:
            return log_odds(model(x, mask, node_type, *routing).logits, target)

        arguments = (mask, node_type) if routing is None else (mask, node_type, routing)
        attributions = CaptumIntegratedGradients(score, multiply_by_inputs=True).attribute(
            x,
            baselines=start,
            additional_forward_args=arguments,
            n_steps=self.steps,
            method="gausslegendre",
            internal_batch_size=ROWS,
        )
        with torch.no_grad():
            ends = torch.stack([score(x, *arguments), score(start, *arguments)])
        return attributions.detach().double().cpu().unflatten(0, (-1, draws)), ends.double().cpu().unflatten(
            1, (-1, draws)
        )

    def check(self, result: Explanation) -> None:
        """The completeness gate."""
        found = result.relative_completeness_error
        if not found <= self.max_completeness_error:
            raise ResultError(
                f"integrated gradients: the attributions miss the score change by {found:.1%} (rms), more than the "
                f"allowed {self.max_completeness_error:.0%}. Use routing: fixed, or more than {self.steps} steps."
            )


def _nearest_phi(donors: Tensor, x: Tensor) -> Tensor:
    """Donors with φ moved by whole turns to within half a turn of the event's: the path takes the short way round."""
    turns = torch.round((x[..., PHI] - donors[..., PHI]) / (2 * torch.pi))
    donors = donors.clone()
    donors[..., PHI] = donors[..., PHI] + 2 * torch.pi * turns
    return donors
