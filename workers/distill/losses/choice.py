"""Which divergence an objective names."""

from functools import partial

from app.specs.training import Objective
from workers.distill.losses.forward_kl import forward_kl
from workers.distill.losses.jsd import jsd
from workers.distill.losses.reverse_kl import reverse_kl
from workers.distill.losses.support import Divergence
from workers.distill.losses.total_variation import total_variation


def divergence_for(objective: Objective) -> Divergence:
    """Return the divergence of the teacher term; an objective without one never calls it."""
    if objective.kind == "reverse_kl":
        return reverse_kl
    if objective.kind == "jsd":
        return partial(jsd, beta=objective.beta)
    if objective.kind == "total_variation":
        return total_variation
    return forward_kl
