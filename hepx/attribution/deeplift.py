"""DeepLIFT: each feature's share of the score's difference to a replacement, by slopes instead of gradients.

Rescale rule (Shrikumar et al., arXiv:1704.02685) for all operations of the network (`rescale.py`), products included;
captum's DeepLift has rules for modules of one input only, and gives wrong values for attention without saying so. On
networks it does support, both agree (tests). The routing of the event is replayed on the replacement: a change of
experts is a jump that no slope describes. Averaged over replacements, as DeepSHAP (arXiv:1705.07874) does.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from hepx.attribution.base import Subject, event_table, from_blocks, in_blocks
from hepx.attribution.baselines import Pattern, per_pattern
from hepx.attribution.gradients import ROWS, GatedMethod, Paths, repeated, score_function
from hepx.attribution.rescale import Rescale
from hepx.graph import GraphBatch
from hepx.results import Explanation, Provenance


class DeepLift(GatedMethod):
    """One pass with slopes per event and replacement; refused when it does not add up (see GatedMethod)."""

    method: Literal["deeplift"] = "deeplift"
    routing: Literal["fixed"] = "fixed"

    def explain(self, subject: Subject, provenance: Provenance) -> Explanation:
        """Values [B, N, F] with their standard error over the donors and the measured completeness error."""
        model = copy.deepcopy(subject.model).requires_grad_(False).eval()  # so that only what depends on x has a slope
        score = score_function(model, subject.target)

        def compute(pattern: Pattern, events: GraphBatch) -> dict[str, Tensor]:
            paths = Paths(self, subject, pattern, events)
            x, start = in_blocks(paths.x[:, None].expand(paths.start.shape)), in_blocks(paths.start)
            extra, parts = repeated(paths.extra, len(x)), []
            for first in range(0, len(x), ROWS // 2):
                part = slice(first, first + ROWS // 2)
                both = torch.cat([x[part], start[part]]).requires_grad_()
                with Rescale():
                    value = score(both, *(torch.cat([tensor[part]] * 2) for tensor in extra)).sum()
                slope = torch.autograd.grad(value, both)[0].chunk(2)[0]
                parts.append((slope * (x[part] - start[part])).detach())
            return paths.summary(from_blocks(torch.cat(parts), paths.start.shape))

        return Explanation(
            events=event_table(subject.graphs),
            **per_pattern(self, subject, lambda _: 4 * self.num_draws, compute),
            interactions=None,
            interactions_error=None,
            unit="logit",
            provenance=provenance,
        )

    def _reason(self) -> tuple[str, str]:
        return "the network has an operation that the rescale rule does not know", "Use integrated_gradients or owen"
