"""Forward KL at T = 1 on a stored head and systematic samples of the rest, without a bucket.

With t the head's weights and, for the samples, r times their share of the draws, E[t] = p wherever
nothing of the head is rounded, so the gradient q − t is that of the full KL in expectation (random
sampling KD: Anshumann et al. 2025). The plug-in value Σ t (log t − log q) is no KL at all; what is
returned is −Σ t log q − H(p), an unbiased estimate of it, which a single row may leave below 0.
"""

import torch

from workers.distill.losses.support import Slopes, Support


def sampled_forward_kl(
    support: Support, log_q_on: torch.Tensor, entropy: torch.Tensor, mass: torch.Tensor
) -> Slopes:
    """Return the estimate and its slope: M q_j − t_j, M = Σ t.

    log_q_on: [c, K] on head and samples; entropy: [c] of the teacher in nats, 0 without a teacher;
    mass: [c] M, 1 but for rounding, 0 without a teacher.
    """
    t = support.w
    value = -(t * torch.where(support.valid, log_q_on, 0)).sum(-1) - entropy
    q = torch.where(support.valid, log_q_on.exp(), 0)
    return Slopes(value, mass[:, None] * q - t, mass, torch.zeros_like(mass))
