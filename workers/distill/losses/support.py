"""What a divergence on a stored head with one bucket for the rest takes, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.distill.values import LiveTargets, SparseTargets


@dataclass(frozen=True, slots=True)
class Support:
    """Stored ids of a chunk's rows, safe to gather and scatter.

    ids: [c, K], padding replaced by the row's first id, so that scattering it again is harmless.
    valid: [c, K] bool, w: [c, K] (0 where padded), log_w: [c, K] (0 where padded), log_r: [c].
    A row without a teacher has support {0} with weight 0: its alpha must be 0.
    samples: how many of the last columns are samples of the rest; entropy: [c], read with them.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    w: torch.Tensor
    log_w: torch.Tensor
    log_r: torch.Tensor
    samples: int = 0
    entropy: torch.Tensor | None = None

    def head(self) -> "Support":
        """Return the support without its samples."""
        kept = slice(0, self.ids.shape[1] - self.samples)
        return Support(
            self.ids[:, kept],
            self.valid[:, kept],
            self.w[:, kept],
            self.log_w[:, kept],
            self.log_r,
        )


@dataclass(frozen=True, slots=True)
class Slopes:
    """A divergence D at T of a chunk's rows, without T², and its slope T dD/dz.

    value: [c] nats. on: [c, K], the slope on the support. Off it the slope at j is
    off · q_j − rest · π_j with off, rest: [c], q the student at T and π the softmax of the rest
    alone (q_j / q_tail, but finite where q_tail underflows).
    """

    value: torch.Tensor
    on: torch.Tensor
    off: torch.Tensor
    rest: torch.Tensor


Divergence = Callable[[Support, torch.Tensor, torch.Tensor], Slopes]
"""(support, log q on it [c, K], log q_tail [c]) → Slopes."""


def support_of(
    teacher: SparseTargets,
    rows: slice,
    vocabulary: int,
    dtype: torch.dtype,
    *,
    least_log_r: float = -torch.inf,
) -> Support:
    """Cut rows out of the targets; padding made harmless, a head that is everything renormalised.

    vocabulary: how many ids can get mass, V. A support of V ids leaves no bucket; any other row of
    a teacher has log r ≥ least_log_r.
    """
    log_w = teacher.log_w[rows].to(dtype)
    log_r = teacher.log_r[rows].to(dtype)
    finite = torch.isfinite(log_w)
    count = finite.sum(-1)
    log_r = torch.where(count > 0, log_r.clamp(min=least_log_r), log_r)
    if finite.shape[1] >= vocabulary and not teacher.samples:
        whole = count >= vocabulary
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
        samples=teacher.samples,
        entropy=None if teacher.entropy is None else teacher.entropy[rows].to(dtype),
    )


def whole_support(teacher: LiveTargets, rows: slice, dtype: torch.dtype) -> Support:
    """Return a live teacher's distribution over its whole vocabulary; ids [c, 0] are not needed."""
    logits = (teacher.hidden[rows] @ teacher.weight.t()).to(dtype)
    log_w = torch.log_softmax(logits.div_(teacher.temperature), -1)
    count = log_w.shape[0]
    return Support(
        ids=torch.empty(count, 0, dtype=torch.int64, device=log_w.device),
        valid=torch.ones_like(log_w, dtype=torch.bool),
        w=log_w.exp(),
        log_w=log_w,
        log_r=torch.full((count,), -torch.inf, dtype=dtype, device=log_w.device),
    )


@dataclass(frozen=True, slots=True)
class Coarse:
    """Teacher p and student q as distributions over the support's ids and the bucket, last.

    log_p, log_q: [c, K + 1]; there: [c, K + 1] bool, false for padding and a bucket of nothing,
    where both logarithms are 0 and nothing must be counted.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    there: torch.Tensor

    def slopes(self, terms: torch.Tensor, phi: torch.Tensor) -> Slopes:
        """Return the slopes of D = Σ_i g(p_i, q_i).

        terms: [c, K + 1] g; phi: [c, K + 1] φ = ∂g/∂q_i. As dq_i/dz_j = q_i (1[i = j] − q_j) / T,
        T dD/dz_j = q_j (φ_j − Σ_i q_i φ_i), with the bucket's φ for every j off the support.
        """
        phi = torch.where(self.there, phi, 0)
        q = torch.where(self.there, self.log_q.exp(), 0)
        centred = phi - (q * phi).sum(-1, keepdim=True)
        value = torch.where(self.there, terms, 0).sum(-1)
        off = centred[:, -1]
        return Slopes(value, q[:, :-1] * centred[:, :-1], off, torch.zeros_like(off))


def coarse(support: Support, log_q_head: torch.Tensor, log_q_tail: torch.Tensor) -> Coarse:
    """Join head and bucket."""
    has_tail = torch.isfinite(support.log_r)[:, None]
    there = torch.cat([support.valid, has_tail], -1)
    log_p = torch.cat([support.log_w, support.log_r[:, None]], -1)
    log_q = torch.cat([log_q_head, log_q_tail[:, None]], -1)
    return Coarse(torch.where(there, log_p, 0), torch.where(there, log_q, 0), there)
