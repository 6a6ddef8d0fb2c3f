"""Forward KL on a stored head with one bucket for the rest, and its gradient.

With S the stored ids, w their weights and r the residual at T, q the student at T:
KL_T = Σ_S w (log w − log q) + r (log r − log q_tail); T² multiplies value and gradient alike.
"""

from dataclasses import dataclass

import torch

from workers.distill.values import SparseTargets


@dataclass(frozen=True, slots=True)
class Support:
    """Stored ids of a chunk's rows, safe to gather and scatter.

    ids: [c, K], padding replaced by the row's first id, so that scattering it again is harmless.
    valid: [c, K] bool, w: [c, K] (0 where padded), log_w: [c, K] (0 where padded), log_r: [c].
    A row without a teacher has support {0} with weight 0: its KL is 0 and its alpha must be 0.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    w: torch.Tensor
    log_w: torch.Tensor
    log_r: torch.Tensor


def support_of(teacher: SparseTargets, rows: slice, vocabulary: int, dtype: torch.dtype) -> Support:
    """Cut rows out of the targets; padding made harmless, a head that is everything renormalised.

    vocabulary: how many ids can get mass, V. A support of V ids leaves no bucket.
    """
    log_w = teacher.log_w[rows].to(dtype)
    log_r = teacher.log_r[rows].to(dtype)
    finite = torch.isfinite(log_w)
    if finite.shape[1] >= vocabulary:
        whole = finite.sum(-1) >= vocabulary
        log_r = torch.where(whole, -torch.inf, log_r)
        log_w = torch.where(whole[:, None], log_w - log_w.logsumexp(-1, keepdim=True), log_w)
    valid = finite.clone()
    valid[:, 0] = True
    ids = torch.where(valid, teacher.ids[rows], teacher.ids[rows, :1])
    return Support(
        ids=ids,
        valid=valid,
        w=torch.where(finite, log_w.exp(), 0),
        log_w=torch.where(finite, log_w, 0),
        log_r=log_r,
    )


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


def bucket_gradient(support: Support, q_head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T dKL_T/dz as (on the support [c, K], r [c]); T more gives the gradient of T² KL_T.

    On the support T dKL/dz_j = q_j − w_j; off it q_j − r π_j, where π is the softmax of the rest
    alone. That equals q_j (1 − r / q_tail) and stays finite where q_tail underflows.
    """
    return q_head - support.w, support.log_r.exp()
