"""Forward KL on a stored head with one bucket for the rest, and its gradient.

With S the stored ids, w their weights and r the residual at T, q the student at T:
KL_T = Σ_S w (log w − log q) + r (log r − log q_tail); T² multiplies value and gradient alike.
"""

import torch

from workers.distill.losses.support import Slopes, Support


def bucket_kl(support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor) -> torch.Tensor:
    """Return KL_T [c] in nats, without T²: a lower bound of the full KL, 0 at equality.

    log_q_head: [c, K] student log-probabilities on the support; log_q_tail: [c], of all the rest.
    Where r = 0 (or the support is the vocabulary) there is no bucket.
    """
    head = (support.w * (support.log_w - log_q_head)).sum(-1)
    has_tail = torch.isfinite(support.log_r)
    log_r = torch.where(has_tail, support.log_r, 0)
    tail = log_r.exp() * (log_r - torch.where(has_tail, log_q_tail, 0))
    return head + torch.where(has_tail, tail, 0)


def forward_kl(support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor) -> Slopes:
    """Return KL_T and its slope: q_j − w_j on the support, q_j − r π_j off it.

    Off the support that equals q_j (1 − r / q_tail) and stays finite where q_tail underflows.
    """
    return Slopes(
        value=bucket_kl(support, log_q_head, log_q_tail),
        on=torch.where(support.valid, log_q_head.exp(), 0) - support.w,
        off=torch.ones_like(support.log_r),
        rest=support.log_r.exp(),
    )
