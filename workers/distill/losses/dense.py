"""The reference: the same losses on whole logits [N, V] through autograd, for tests and proofs."""

import torch

from workers.distill.values import SparseTargets


def full_kl(
    log_p: torch.Tensor, logits: torch.Tensor, temperature: float, vocabulary: int | None = None
) -> torch.Tensor:
    """Return KL(p_T ‖ q_T) [N] in nats over the full vocabulary, without T².

    log_p: [N, V′] teacher log-probabilities at T = 1; logits: [N, V] of the student.
    """
    width = min(vocabulary or logits.shape[1], log_p.shape[1])
    p = torch.log_softmax(log_p[:, :width] / temperature, -1)
    q = torch.log_softmax(logits[:, :width] / temperature, -1)
    return (p.exp() * (p - q)).sum(-1)


def dense_bucket_kl(
    logits: torch.Tensor, teacher: SparseTargets, vocabulary: int | None = None
) -> torch.Tensor:
    """Return the bucket KL_T [N] in nats, row by row and literally, without T²."""
    width = min(vocabulary or logits.shape[1], logits.shape[1])
    log_q = torch.log_softmax(logits[:, :width] / teacher.temperature, -1)
    values = []
    for row in range(logits.shape[0]):
        finite = torch.isfinite(teacher.log_w[row])
        ids, log_w = teacher.ids[row][finite], teacher.log_w[row][finite].to(logits.dtype)
        log_r = teacher.log_r[row].to(logits.dtype)
        rest = torch.ones(width, dtype=torch.bool, device=logits.device)
        rest[ids] = False
        if not bool(rest.any()):
            log_w, log_r = log_w - log_w.logsumexp(-1), log_r.new_tensor(-torch.inf)
        value = (log_w.exp() * (log_w - log_q[row, ids])).sum()
        if bool(torch.isfinite(log_r)):
            value = value + log_r.exp() * (log_r - log_q[row, rest].logsumexp(-1))
        values.append(value)
    return torch.stack(values) if values else logits.sum(-1)


def dense_loss(
    logits: torch.Tensor,
    *,
    labels: torch.Tensor,
    alpha: torch.Tensor,
    teacher: SparseTargets | None,
    denominator: float,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Return Σ (α T² KD + (1 − α) CE) / denominator from logits [N, V]; differentiable."""
    width = min(vocabulary or logits.shape[1], logits.shape[1])
    log_q = torch.log_softmax(logits[:, :width], -1)
    ce = -log_q.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    weights = torch.where(labels >= 0, 1 - alpha, 0).to(logits.dtype)
    loss = (weights * ce).sum()
    if teacher is not None:
        kd = dense_bucket_kl(logits, teacher, vocabulary)
        loss = loss + (alpha.to(logits.dtype) * teacher.temperature**2 * kd).sum()
    return loss / max(float(denominator), 1.0)
