"""Input × gradient: the score's linear change from a replacement to the event, (x − x′) · ∂score/∂x.

Shrikumar et al., arXiv:1605.01713, through captum, as the difference to replacements from data instead of to 0, which
for φ or a b-tag means nothing. A first-order Taylor expansion: its completeness error is what the curvature makes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hepx.attribution.base import Subject, event_table, from_blocks, in_blocks
from hepx.attribution.baselines import Pattern, per_pattern
from hepx.attribution.gradients import PathMethod, Paths, repeated
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class InputXGradient(PathMethod):
    """One gradient per event and replacement."""

    method: Literal["input_x_gradient"] = "input_x_gradient"

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the donors and the measured completeness error."""

        from captum.attr import InputXGradient as CaptumInputXGradient  # slow

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            difference, start = in_blocks(paths.x[:, None] - paths.start), in_blocks(paths.start)

            def of_difference(change: Tensor, start: Tensor, *extra: Tensor) -> Tensor:
                return paths.score(start + change, *extra)

            extra = (start, *repeated(paths.extra, len(start)))
            values = CaptumInputXGradient(of_difference).attribute(
                difference.requires_grad_(), additional_forward_args=extra
            )
            return paths.summary(from_blocks(values.detach(), paths.start.shape))

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 2 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
        )
