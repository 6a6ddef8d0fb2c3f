"""Total variation distance on a stored head with one bucket for the rest."""

import torch

from workers.distill.losses.support import Slopes, Support, coarse

_ROUNDING = 16
"""Units in the last place that two roads to one probability may differ by."""


def total_variation(support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor) -> Slopes:
    """Return ½ Σ |q − p|, between 0 and 1, and a subgradient: φ = ½ sign(q − p), 0 where equal.

    Equal means but for rounding: else a student at its goal would be pushed about by noise.
    """
    c = coarse(support, log_q_head, log_q_tail)
    p, q = c.log_p.exp(), c.log_q.exp()
    gap = q - p
    noise = _ROUNDING * torch.finfo(q.dtype).eps * (p + q)
    return c.slopes(gap.abs() / 2, torch.where(gap.abs() > noise, gap.sign() / 2, 0))
