"""Generalised Jensen–Shannon divergence (Agarwal et al. 2024, GKD, equation 1)."""

import math

import torch

from workers.distill.losses.support import Slopes, Support, coarse


def jsd(
    support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor, beta: float
) -> Slopes:
    """Return β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q, p the teacher, and its slope.

    0 < β < 1; near 0 it behaves like β times forward KL, near 1 like (1 − β) times reverse KL.
    φ = (1 − β) (log q − log m): what m's own change adds cancels.
    """
    c = coarse(support, log_q_head, log_q_tail)
    log_m = torch.logaddexp(c.log_p + math.log(beta), c.log_q + math.log1p(-beta))
    to_teacher = beta * c.log_p.exp() * (c.log_p - log_m)
    to_student = (1 - beta) * c.log_q.exp() * (c.log_q - log_m)
    return c.slopes(to_teacher + to_student, (1 - beta) * (c.log_q - log_m))
