"""The reference: the same losses on whole logits [N, V] through autograd, for tests and proofs."""

import torch

from app.specs.training import ObjectiveKind
from workers.distill.values import SparseTargets


def divergence_of(
    log_p: torch.Tensor, log_q: torch.Tensor, kind: ObjectiveKind, beta: float = 0.5
) -> torch.Tensor:
    """Return D(p, q) over the last axis in nats, literally. Entries of p may be 0 (log p = −∞)."""
    p, q = log_p.exp(), log_q.exp()

    def kl(a: torch.Tensor, log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
        return torch.where(a > 0, a * (log_a - log_b), 0).sum(-1)

    if kind == "forward_kl":
        return kl(p, log_p, log_q)
    if kind == "reverse_kl":
        return kl(q, log_q, log_p)
    if kind == "jsd":
        log_m = (beta * p + (1 - beta) * q).log()
        return beta * kl(p, log_p, log_m) + (1 - beta) * kl(q, log_q, log_m)
    if kind == "total_variation":
        return (p - q).abs().sum(-1) / 2
    raise ValueError(f"{kind} compares no distributions")


def full_divergence(
    log_p: torch.Tensor,
    logits: torch.Tensor,
    temperature: float,
    kind: ObjectiveKind = "forward_kl",
    *,
    beta: float = 0.5,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Return D(p_T, q_T) [N] in nats over the full vocabulary, without T².

    log_p: [N, V′] teacher log-probabilities at T = 1; logits: [N, V] of the student.
    """
    width = min(vocabulary or logits.shape[1], log_p.shape[1])
    p = torch.log_softmax(log_p[:, :width] / temperature, -1)
    q = torch.log_softmax(logits[:, :width] / temperature, -1)
    return divergence_of(p, q, kind, beta)


def dense_bucket(
    logits: torch.Tensor,
    teacher: SparseTargets,
    kind: ObjectiveKind = "forward_kl",
    *,
    beta: float = 0.5,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Return D over head and bucket at T [N] in nats, row by row and literally, without T²."""
    width = min(vocabulary or logits.shape[1], logits.shape[1])
    log_q = torch.log_softmax(logits[:, :width] / teacher.temperature, -1)
    values = []
    for row in range(logits.shape[0]):
        finite = torch.isfinite(teacher.log_w[row])
        if not bool(finite.any()):
            values.append(log_q[row].sum() * 0)
            continue
        ids, log_w = teacher.ids[row][finite], teacher.log_w[row][finite].to(logits.dtype)
        log_r = teacher.log_r[row].to(logits.dtype)
        rest = torch.ones(width, dtype=torch.bool, device=logits.device)
        rest[ids] = False
        if bool(rest.any()):
            log_p = torch.cat([log_w, log_r[None]])
            coarse_q = torch.cat([log_q[row, ids], log_q[row, rest].logsumexp(-1)[None]])
        else:
            log_p, coarse_q = log_w - log_w.logsumexp(-1), log_q[row, ids]
        values.append(divergence_of(log_p, coarse_q, kind, beta))
    return torch.stack(values) if values else logits.sum(-1)


def dense_loss(
    logits: torch.Tensor,
    *,
    labels: torch.Tensor,
    alpha: torch.Tensor,
    teacher: SparseTargets | None,
    denominator: float,
    vocabulary: int | None = None,
    kind: ObjectiveKind = "forward_kl",
    beta: float = 0.5,
) -> torch.Tensor:
    """Return Σ (α T² KD + (1 − α) CE) / denominator from logits [N, V]; differentiable."""
    width = min(vocabulary or logits.shape[1], logits.shape[1])
    log_q = torch.log_softmax(logits[:, :width], -1)
    ce = -log_q.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    weights = torch.where(labels >= 0, 1 - alpha, 0).to(logits.dtype)
    loss = (weights * ce).sum()
    if teacher is not None:
        kd = dense_bucket(logits, teacher, kind, beta=beta, vocabulary=vocabulary)
        loss = loss + (alpha.to(logits.dtype) * teacher.temperature**2 * kd).sum()
    return loss / max(float(denominator), 1.0)
