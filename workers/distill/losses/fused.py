"""The loss and its gradient, chunk by chunk over tokens: no [N, V] survives a chunk."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from workers.distill.losses.ce import nll
from workers.distill.losses.forward_kl import bucket_kl, forward_kl
from workers.distill.losses.sampled import sampled_forward_kl
from workers.distill.losses.support import Divergence, Slopes, Support, support_of, whole_support
from workers.distill.values import LiveTargets, SparseTargets

_LEAST_LOG_R = -30.0
"""A bucket of the teacher with no mass at all would make reverse KL infinite."""
_UNDERFLOW = 1e-30
"""Below this a sum of exponentials (largest logit = 1) is recomputed about its own maximum."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """loss: scalar with gradient, Σ m(α T² KD + (1 − α) CE) / denominator.

    kd_sum: Σ of the bucket forward KL at T in nats, whatever the divergence that is trained
    (no T², no alpha), over `kd_tokens` rows with a teacher; of a live one it is the full KL.
    ce_sum: Σ −log q(label) in nats at T = 1 over `ce_tokens` rows with a label. All detached.
    """

    loss: torch.Tensor
    kd_sum: torch.Tensor
    ce_sum: torch.Tensor
    kd_tokens: int
    ce_tokens: int


@dataclass(frozen=True, slots=True)
class _Problem:
    labels: torch.Tensor
    teacher: SparseTargets | LiveTargets | None
    alpha: torch.Tensor
    denominator: float
    vocabulary: int
    chunk: int
    divergence: Divergence
    want_gradient: bool


def fused_loss(  # noqa: PLR0913 - the core's loss: rows, what they weigh, and how
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    labels: torch.Tensor,
    alpha: torch.Tensor,
    teacher: SparseTargets | LiveTargets | None,
    denominator: float,
    vocabulary: int | None = None,
    chunk: int = 256,
    divergence: Divergence = forward_kl,
) -> LossSums:
    """Return the mixed loss of N supervised positions, never holding [N, V].

    hidden: [N, D] states that predict (only supervised positions); weight: [V, D] output head;
    labels: [N] ids (−1: none); alpha: [N]; teacher: stored rows for the same N, the live one's
    states, or None; denominator: Σ m over the whole optimiser step, all ranks; vocabulary: rows of
    the head that may get mass (the padding beyond gets none, and no gradient); chunk: tokens held
    at once; divergence: KD, on the stored head and its bucket, or on the whole vocabulary (live).
    Arithmetic is fp32 (fp64 for fp64 inputs), whatever the weights' type.
    Errors: ValueError for sampled rows under another objective than forward KL at T = 1, and for a
    live teacher of another vocabulary.
    """
    problem = _Problem(
        labels=labels,
        teacher=teacher,
        alpha=alpha,
        denominator=max(float(denominator), 1.0),
        vocabulary=min(vocabulary or weight.shape[0], weight.shape[0]),
        chunk=chunk,
        divergence=divergence,
        want_gradient=torch.is_grad_enabled(),
    )
    _check_teacher(problem)
    apply: Any = _FusedLoss.apply  # torch leaves it untyped
    loss, kd_sum, ce_sum = apply(hidden, weight, problem)
    return LossSums(loss, kd_sum, ce_sum, _taught(problem), int((labels >= 0).sum()))


def _check_teacher(problem: _Problem) -> None:
    teacher = problem.teacher
    if isinstance(teacher, LiveTargets):
        if teacher.weight.shape[0] != problem.vocabulary:
            raise ValueError(
                f"the live teacher's head has {teacher.weight.shape[0]} rows, "
                f"the vocabulary {problem.vocabulary}"
            )
    elif teacher is not None and teacher.samples:
        _check_samples(teacher, problem.divergence)


def _check_samples(teacher: SparseTargets, divergence: Divergence) -> None:
    if divergence is not forward_kl or teacher.temperature != 1.0:
        raise ValueError("sampled rows train forward KL at T = 1 only: decode without samples")


def _taught(problem: _Problem) -> int:
    """Return how many rows have a teacher."""
    teacher = problem.teacher
    if isinstance(teacher, LiveTargets):
        return teacher.hidden.shape[0]
    return 0 if teacher is None else int(torch.isfinite(teacher.log_w).any(-1).sum())


class _FusedLoss(torch.autograd.Function):
    """Computes gradients in forward, where the logits of a chunk are alive anyway."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, problem: _Problem
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        head = weight[: problem.vocabulary]
        needs = [problem.want_gradient and n for n in ctx.needs_input_grad[:2]]
        d_hidden = torch.empty_like(hidden) if needs[0] else None
        d_weight = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        sums = torch.zeros(3, dtype=exact, device=hidden.device)
        rows = min(problem.chunk, hidden.shape[0])
        buffer = torch.empty(rows, problem.vocabulary, dtype=exact, device=hidden.device)
        for start in range(0, hidden.shape[0], problem.chunk):
            part = slice(start, min(start + problem.chunk, hidden.shape[0]))
            states = hidden[part]
            logits = _logits(states, head, buffer[: states.shape[0]])
            gradient = _chunk(logits, states, head, part, problem, sums)
            typed = gradient.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(typed, head, out=d_hidden[part])
            if d_weight is not None:
                _add_outer(d_weight[: problem.vocabulary], typed, states)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.mark_non_differentiable(kd := sums[1].clone(), ce := sums[2].clone())
        return sums[0].clone(), kd, ce

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: torch.Tensor, _kd: torch.Tensor, _ce: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        # A pass over [V, D] is worth saving on the CPU; elsewhere reading `grad` would wait.
        if not (grad.device.type == "cpu" and float(grad) == 1.0):
            d_hidden = None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype)
            d_weight = None if d_weight is None else d_weight * grad.to(d_weight.dtype)
        return d_hidden, d_weight, None


def _logits(states: torch.Tensor, head: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    if states.dtype == buffer.dtype:
        return torch.mm(states, head.t(), out=buffer)
    return buffer.copy_(states @ head.t())


def _add_outer(d_weight: torch.Tensor, gradient: torch.Tensor, states: torch.Tensor) -> None:
    if gradient.dtype == d_weight.dtype:
        d_weight.addmm_(gradient.t(), states)
    else:
        d_weight.add_(gradient.t() @ states)


def _chunk(
    z: torch.Tensor,
    states: torch.Tensor,
    head: torch.Tensor,
    part: slice,
    problem: _Problem,
    sums: torch.Tensor,
) -> torch.Tensor:
    """Add a chunk's loss, KD and CE to `sums`; return dLoss/dz [c, V] in z's own memory."""
    labels = problem.labels[part]
    labelled = labels >= 0
    label_ids = labels.clamp(min=0)[:, None]
    alpha = problem.alpha[part].to(z.dtype)
    ce_scale = torch.where(labelled, 1 - alpha, 0)
    temperature = 1.0 if problem.teacher is None else problem.teacher.temperature
    kd_scale = alpha * temperature / problem.denominator
    z_label = z.gather(1, label_ids)[:, 0]
    top = z.amax(-1, keepdim=True)
    if problem.teacher is None:
        exponentials = z.sub_(top).exp_()
        total = exponentials.sum(-1)
        kd = reported = torch.zeros_like(total)
        gradient = exponentials.mul_((ce_scale / problem.denominator / total)[:, None])
        log_total = total.log()
    elif isinstance(problem.teacher, LiveTargets):
        kd, reported, log_total, gradient = _with_whole(
            z,
            top,
            whole_support(problem.teacher, part, z.dtype),
            problem.divergence,
            kd_scale=kd_scale,
            ce_scale=ce_scale / problem.denominator,
            temperature=temperature,
        )
    else:
        least = -torch.inf if problem.divergence is forward_kl else _LEAST_LOG_R
        support = support_of(problem.teacher, part, problem.vocabulary, z.dtype, least_log_r=least)
        kd, reported, log_total, gradient = _with_teacher(
            z,
            top,
            support,
            problem.divergence,
            kd_scale=kd_scale,
            ce_scale=ce_scale / problem.denominator,
            temperature=temperature,
            rows=(states, head),
        )
    ce = torch.where(labelled, nll(z_label, top[:, 0] + log_total), 0)
    gradient.scatter_add_(1, label_ids, -(ce_scale / problem.denominator)[:, None])
    mixed = alpha * temperature**2 * kd + ce_scale * ce
    sums += torch.stack([mixed.sum() / problem.denominator, reported.sum(), ce.sum()])
    return gradient


def _with_teacher(
    z: torch.Tensor,
    top: torch.Tensor,
    support: Support,
    divergence: Divergence,
    *,
    kd_scale: torch.Tensor,
    ce_scale: torch.Tensor,
    temperature: float,
    rows: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return D_T [c], bucket KL_T [c], log Σ exp(z − top) at T = 1 [c], and dLoss/dz but labels.

    At T = 1 both losses share one exponential and one sum.
    """
    z_head = z.gather(1, support.ids) - top
    shared = temperature == 1.0
    plain = z.sub_(top)
    tempered = plain if shared else plain / temperature
    tempered.exp_()
    e_head = torch.where(support.valid, (z_head / temperature).exp(), 0)
    tempered.scatter_(1, support.ids, 0)  # the rest is summed directly, never as 1 − Σ
    rest = tempered.sum(-1)
    total = rest + e_head.sum(-1)
    log_rest = rest.log()
    weak = (rest < _UNDERFLOW) & torch.isfinite(support.log_r)
    pi: torch.Tensor | None = None
    if bool(weak.any()):
        pi, log_rest[weak] = _rest_alone(rows, support.ids[weak], top[weak], weak, temperature)
    log_q_head = z_head / temperature - total.log()[:, None]
    log_q_tail = log_rest - total.log()
    slopes, reported = _compared(support, divergence, log_q_head, log_q_tail)
    q_head = e_head / total[:, None]
    r = slopes.rest
    off_support = slopes.off / total - torch.where(weak | (r == 0), 0, r / rest)
    head_gradient = kd_scale[:, None] * slopes.on
    if shared:
        log_total = total.log()
        gradient = tempered.mul_((kd_scale * off_support + ce_scale / total)[:, None])
        head_gradient += ce_scale[:, None] * q_head
    else:
        gradient = tempered.mul_((kd_scale * off_support)[:, None])
        exponentials = plain.exp_()
        whole = exponentials.sum(-1)
        log_total = whole.log()
        exponentials.mul_((ce_scale / whole)[:, None])
        head_gradient += exponentials.gather(1, support.ids)
        gradient += exponentials
    if pi is not None:
        gradient[weak] -= (kd_scale * r)[weak, None] * pi
    head_gradient = torch.where(support.valid, head_gradient, head_gradient[:, :1])
    # Padded slots repeat the row's first id with the first id's value: writing twice is harmless.
    gradient.scatter_(1, support.ids, head_gradient)
    return slopes.value, reported, log_total, gradient


def _compared(
    support: Support, divergence: Divergence, log_q_on: torch.Tensor, log_q_off: torch.Tensor
) -> tuple[Slopes, torch.Tensor]:
    """Return what is trained, and the bucket KL that is reported, of stored rows."""
    if not support.samples:
        return divergence(support, log_q_on, log_q_off), bucket_kl(support, log_q_on, log_q_off)
    head, log_q_drawn = support.head(), log_q_on[:, -support.samples :]
    drawn = torch.where(support.valid[:, -support.samples :], log_q_drawn, -torch.inf)
    log_q_tail = torch.logaddexp(log_q_off, drawn.logsumexp(-1))
    mass = support.w.sum(-1)
    entropy = torch.zeros_like(mass) if support.entropy is None else support.entropy
    slopes = sampled_forward_kl(support, log_q_on, entropy, mass)
    return slopes, bucket_kl(head, log_q_on[:, : -support.samples], log_q_tail)


def _with_whole(
    z: torch.Tensor,
    top: torch.Tensor,
    support: Support,
    divergence: Divergence,
    *,
    kd_scale: torch.Tensor,
    ce_scale: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same as _with_teacher where the support is the vocabulary: nothing is a bucket."""
    z = z.sub_(top)
    log_q = torch.log_softmax(z / temperature, -1)
    nothing = torch.zeros_like(ce_scale)
    slopes = divergence(support, log_q, nothing)
    reported = bucket_kl(support, log_q, nothing)
    gradient = slopes.on.mul_(kd_scale[:, None])
    exponentials = z.exp_()
    total = exponentials.sum(-1)
    gradient.addcmul_(exponentials, (ce_scale / total)[:, None])
    return slopes.value, reported, total.log(), gradient


def _rest_alone(
    rows: tuple[torch.Tensor, torch.Tensor],
    ids: torch.Tensor,
    top: torch.Tensor,
    weak: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax and log-sum (about `top`) of the logits off the support, about their own top.

    For the few rows whose rest underflows beside the largest logit.
    """
    states, head = rows
    z = ((states[weak] @ head.t()).to(top.dtype) - top) / temperature
    z.scatter_(1, ids, -torch.inf)
    log_rest = z.logsumexp(-1)
    return (z - log_rest[:, None]).exp(), log_rest
