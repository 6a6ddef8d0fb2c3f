"""Reverse KL on a stored head with one bucket for the rest.

Lr = Σ_S q (log q − log w) + q_tail (log q_tail − log r). Without the bucket it would reward a
student for moving mass off the support, and collapse.
"""

import torch

from workers.distill.losses.support import Slopes, Support, coarse


def reverse_kl(support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor) -> Slopes:
    """Return Lr and its slope q_j (log q_j − log w_j − Lr): φ = log q − log p + 1."""
    c = coarse(support, log_q_head, log_q_tail)
    ratio = c.log_q - c.log_p
    return c.slopes(c.log_q.exp() * ratio, ratio + 1)
