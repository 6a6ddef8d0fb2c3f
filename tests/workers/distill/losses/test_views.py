"""The proofs of the views beside the bucket: the whole distribution live, and samples of a tail."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.specs.training import Objective
from tests.workers.distill.losses.test_proofs import (
    FORWARD,
    GRID,
    OBJECTIVES,
    D,
    N,
    V,
    close,
    every_objective,
    gradients,
)
from workers.distill.losses.choice import divergence_for
from workers.distill.losses.dense import dense_bucket, full_divergence
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.values import LiveTargets, SparseTargets

DT = 5


class Case(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor
    teacher: LiveTargets | SparseTargets


def case(
    temperature: float = 1.0,
    *,
    n: int = N,
    v: int = V,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)

    return Case(
        hidden=normal(n, D).requires_grad_(),
        weight=normal(v, D).requires_grad_(),
        labels=torch.randint(0, v, (n,), generator=g),
        alpha=torch.rand(n, dtype=dtype, generator=g),
        teacher=LiveTargets(normal(n, DT), normal(v, DT), temperature),
    )


def fused(
    c: Case, denominator: float = N, objective: Objective = FORWARD, **options: int
) -> LossSums:
    return fused_loss(
        c.hidden,
        c.weight,
        labels=c.labels,
        alpha=c.alpha,
        teacher=c.teacher,
        denominator=denominator,
        divergence=divergence_for(objective),
        **options,
    )


def teacher_log_p(c: Case) -> torch.Tensor:
    assert isinstance(c.teacher, LiveTargets)
    return torch.log_softmax(c.teacher.hidden @ c.teacher.weight.t(), -1)


def whole(c: Case, denominator: float, objective: Objective, vocabulary: int | None = None) -> Any:
    """Return the mixed loss through autograd on whole logits, from the teacher's whole p."""
    logits = (c.hidden @ c.weight.t())[:, :vocabulary]
    kd = full_divergence(
        teacher_log_p(c), logits, c.teacher.temperature, objective.kind, beta=objective.beta
    )
    log_q = torch.log_softmax(logits, -1)
    ce = -log_q.gather(1, c.labels.clamp(min=0)[:, None])[:, 0]
    ce_weight = torch.where(c.labels >= 0, 1 - c.alpha, 0)
    total = (c.alpha * c.teacher.temperature**2 * kd + ce_weight * ce).sum()
    return total / max(denominator, 1)


@every_objective
@pytest.mark.parametrize("temperature", [*GRID, 1.7])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_a_live_teacher_gives_the_dense_loss_at_every_temperature(
    temperature: float, chunk: int, objective: Objective
) -> None:
    c = case(temperature)
    expected = whole(c, N, objective)
    out = fused(c, objective=objective, chunk=chunk)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c))
    full = full_divergence(teacher_log_p(c), c.hidden @ c.weight.t(), temperature).sum()
    torch.testing.assert_close(out.kd_sum, full.detach())
    assert (out.kd_tokens, out.ce_tokens) == (N, N)


@every_objective
@pytest.mark.parametrize("temperature", GRID)
def test_a_live_teacher_that_is_the_student_gives_nothing(
    temperature: float, objective: Objective
) -> None:
    c = case(temperature)
    own = LiveTargets(c.hidden.detach(), c.weight.detach(), temperature)
    out = fused(c._replace(teacher=own, alpha=torch.ones(N).double()), objective=objective)
    assert abs(out.loss.item()) < 1e-12
    assert max(g.abs().max().item() for g in gradients(out.loss, c)) < 1e-12


@every_objective
def test_live_gradient_is_that_of_the_returned_loss(objective: Objective) -> None:
    c = case(2.0, n=4, v=9)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return fused(c._replace(hidden=hidden, weight=weight), 7, objective).loss

    assert torch.autograd.gradcheck(loss, (c.hidden, c.weight), eps=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 6),
    v=st.integers(1, 12),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 7),
    temperature=st.sampled_from(GRID),
    seed=st.integers(0, 999),
    objective=st.sampled_from(OBJECTIVES),
)
def test_any_shape_of_a_live_teacher_agrees_with_the_reference(
    *,
    n: int,
    v: int,
    padding: int,
    chunk: int,
    temperature: float,
    seed: int,
    objective: Objective,
) -> None:
    c = case(temperature, n=n, v=v, seed=seed)
    wide = torch.cat([c.weight.detach(), 9 * torch.ones(padding, D, dtype=torch.float64)])
    c = c._replace(weight=wide.requires_grad_())
    out = fused(c, n, objective, vocabulary=v, chunk=chunk)
    expected = whole(c, n, objective, v)
    torch.testing.assert_close(out.loss, expected)
    got = gradients(out.loss, c)
    close(got, gradients(expected, c), 1e-9)
    assert got[1][v:].abs().sum().item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_objective
def test_a_live_teacher_in_low_precision_is_summed_in_fp32(
    objective: Objective, dtype: torch.dtype
) -> None:
    low = case(2.0, dtype=dtype)
    exact = Case(
        low.hidden.detach().double().requires_grad_(),
        low.weight.detach().double().requires_grad_(),
        low.labels,
        low.alpha.double(),
        LiveTargets(low.teacher.hidden.double(), low.teacher.weight.double(), 2.0),  # type: ignore[union-attr] # a live one
    )
    out, want = fused(low, objective=objective, chunk=4), fused(exact, objective=objective)
    assert out.loss.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.loss.double(), want.loss, rtol=tolerance, atol=tolerance)
    for got, right in zip(gradients(out.loss, low), gradients(want.loss, exact), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), right, rtol=10 * tolerance, atol=tolerance)


def test_a_live_teacher_of_another_vocabulary_is_refused() -> None:
    c = case()
    with pytest.raises(ValueError, match="head has 29 rows, the vocabulary 20"):
        fused(c, vocabulary=20)


def sampled(logits: torch.Tensor, k: int, n: int, seed: int = 0) -> SparseTargets:
    """Return head of k, n systematic samples of the rest drawn anew by numpy-like arithmetic."""
    g = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    top = log_p.topk(k)
    rest = p.scatter(1, top.indices, 0)
    r = rest.sum(-1)
    ids = torch.zeros(len(p), n, dtype=torch.int64)
    share = torch.zeros(len(p), n, dtype=p.dtype)
    for row in range(len(p)):
        running = rest[row].cumsum(0)
        start = torch.rand(1, generator=g, dtype=p.dtype)
        for draw in range(n):
            place = (draw + start) / n * running[-1]
            found = int((running <= place).sum())
            known = (ids[row] == found) & (share[row] > 0)
            slot = int(known.nonzero()[0, 0]) if bool(known.any()) else int((share[row] > 0).sum())
            ids[row, slot] = found
            share[row, slot] += 1 / n
    log_share = torch.where(share > 0, (share * r[:, None]).log(), -torch.inf)
    entropy = -(p * log_p).sum(-1)
    return SparseTargets(
        torch.cat([top.indices, ids], 1),
        torch.cat([top.values, log_share], 1),
        r.log(),
        1.0,
        samples=n,
        entropy=entropy,
    )


def sampled_case(n: int = N, v: int = V, *, k: int = 4, draws: int = 6, seed: int = 0) -> Case:
    c = case(n=n, v=v, seed=seed)
    return c._replace(teacher=sampled(1.5 * teacher_log_p(c), k, draws, seed))


def literal(c: Case, denominator: float, vocabulary: int | None = None) -> Any:
    """Return Σ (α(−Σ t log q − H) + (1 − α) CE) through autograd on whole logits."""
    t = c.teacher
    assert isinstance(t, SparseTargets)
    assert t.entropy is not None
    log_q = torch.log_softmax((c.hidden @ c.weight.t())[:, :vocabulary], -1)
    target = torch.zeros_like(log_q).scatter_add(1, t.ids, t.log_w.exp())
    kd = -(target.detach() * log_q).sum(-1) - t.entropy
    ce = -log_q.gather(1, c.labels[:, None])[:, 0]
    return (c.alpha * kd + (1 - c.alpha) * ce).sum() / max(denominator, 1)


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_samples_give_the_cross_entropy_on_them_and_its_gradient(chunk: int) -> None:
    c = sampled_case()
    expected = literal(c, N)
    out = fused(c, chunk=chunk)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c))


def test_sampled_gradient_is_that_of_the_returned_loss() -> None:
    c = sampled_case(4, 9, k=2, draws=3)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return fused(c._replace(hidden=hidden, weight=weight), 7).loss

    assert torch.autograd.gradcheck(loss, (c.hidden, c.weight), eps=1e-6, atol=1e-7)


def test_what_is_reported_of_samples_is_the_bucket_kl_of_their_head() -> None:
    c = sampled_case()
    t = c.teacher
    assert isinstance(t, SparseTargets)
    head = SparseTargets(t.ids[:, :4], t.log_w[:, :4], t.log_r, 1.0)
    expected = dense_bucket(c.hidden @ c.weight.t(), head).sum().detach()
    torch.testing.assert_close(fused(c).kd_sum, expected)
    torch.testing.assert_close(fused(c._replace(teacher=head)).kd_sum, expected)


def test_sampled_loss_and_gradient_are_unbiased() -> None:
    """Over 400 seeds the mean is within 4 standard errors of the full KL's value and gradient."""
    c = case(n=5)
    logits = 1.5 * teacher_log_p(c)
    ones = torch.ones(5).double()
    losses, slopes = [], []
    for seed in range(400):
        one = c._replace(teacher=sampled(logits, 3, 4, seed), alpha=ones)
        out = fused(one, 5)
        losses.append(out.loss.detach())
        slopes.append(torch.autograd.grad(out.loss, one.hidden)[0])
    full = full_divergence(torch.log_softmax(logits, -1), c.hidden @ c.weight.t(), 1.0).sum() / 5
    want = torch.autograd.grad(full, c.hidden)[0]
    for found, right in ((torch.stack(losses), full.detach()), (torch.stack(slopes), want)):
        error = found.std(0) / math.sqrt(400) + 1e-9
        assert ((found.mean(0) - right).abs() / error).max().item() < 4


def test_a_row_without_a_teacher_or_without_samples_among_sampled_ones() -> None:
    c = sampled_case()
    t = c.teacher
    assert isinstance(t, SparseTargets)
    assert t.entropy is not None
    log_w, log_r, entropy, alpha = t.log_w.clone(), t.log_r.clone(), t.entropy.clone(), c.alpha
    log_w[0], log_r[0], entropy[0] = -torch.inf, -torch.inf, 0
    log_w[1, 4:], log_r[1] = -torch.inf, -torch.inf
    log_w[1, :4] = torch.log_softmax(log_w[1, :4], -1)
    alpha = alpha.clone()
    alpha[0] = 0
    c = c._replace(
        teacher=replace(t, log_w=log_w, log_r=log_r, entropy=entropy, ids=t.ids.clone()),
        alpha=alpha,
    )
    expected = literal(c, N)
    out = fused(c, chunk=3)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c))
    assert out.kd_tokens == N - 1


@every_objective
def test_samples_train_forward_kl_alone(objective: Objective) -> None:
    c = sampled_case()
    if objective.kind == "forward_kl":
        c = c._replace(teacher=replace(c.teacher, temperature=2.0))
    with pytest.raises(ValueError, match="forward KL at T = 1 only"):
        fused(c, objective=objective)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 5),
    v=st.integers(2, 12),
    k=st.integers(1, 12),
    draws=st.integers(1, 6),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_any_shape_of_samples_agrees_with_the_reference(
    *, n: int, v: int, k: int, draws: int, padding: int, chunk: int, seed: int
) -> None:
    c = sampled_case(n, v, k=min(k, v - 1), draws=draws, seed=seed)
    wide = torch.cat([c.weight.detach(), torch.ones(padding, D, dtype=torch.float64)])
    c = c._replace(weight=wide.requires_grad_())
    out = fused(c, n, vocabulary=v, chunk=chunk)
    expected = literal(c, n, v)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c), 1e-9)
