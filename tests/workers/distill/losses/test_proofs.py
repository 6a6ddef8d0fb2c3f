"""The proofs every objective must pass, for each divergence with a bucket and cross-entropy."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.specs.training import Objective
from workers.distill.losses.choice import divergence_for
from workers.distill.losses.dense import dense_bucket, dense_loss, full_divergence
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.values import SparseTargets

GRID = (1.0, 2.0, 4.0)
FORWARD = Objective(kind="forward_kl")
OBJECTIVES = (
    FORWARD,
    Objective(kind="reverse_kl"),
    Objective(kind="jsd", beta=0.5),
    Objective(kind="jsd", beta=0.1),
    Objective(kind="total_variation"),
)
every_objective = pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.kind}-{o.beta:g}" if o.kind == "jsd" else o.kind
)
N, D, V = 11, 6, 29


class Case(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor
    teacher: SparseTargets


def targets(logits: torch.Tensor, k: int, temperature: float) -> SparseTargets:
    """Return unrounded targets from teacher logits [N, V]: head of k, residual summed outside."""
    log_p = torch.log_softmax(logits / temperature, -1)
    top = log_p.topk(min(k, logits.shape[1]))
    rest = log_p.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    return SparseTargets(top.indices, top.values, rest, temperature)


def case(temperature: float = 1.0, *, k: int = 5, n: int = N, v: int = V, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)
    kind = torch.float64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=kind, generator=g)

    return Case(
        hidden=normal(n, D).requires_grad_(),
        weight=normal(v, D).requires_grad_(),
        labels=torch.randint(0, v, (n,), generator=g),
        alpha=torch.rand(n, dtype=kind, generator=g),
        teacher=targets(2 * normal(n, v), k, temperature),
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


def dense(c: Case, denominator: float = N, objective: Objective = FORWARD, **options: int) -> Any:
    """Return the same loss through autograd on whole logits."""
    return dense_loss(
        c.hidden @ c.weight.t(),
        labels=c.labels,
        alpha=c.alpha,
        teacher=c.teacher,
        denominator=denominator,
        kind=objective.kind,
        beta=objective.beta,
        **options,
    )


def gradients(loss: torch.Tensor, c: Case) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, (c.hidden, c.weight)))


def close(a: list[torch.Tensor], b: list[torch.Tensor], tolerance: float = 1e-12) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@every_objective
@pytest.mark.parametrize("k", [5, V])
@pytest.mark.parametrize("temperature", GRID)
def test_student_equal_to_teacher_is_exactly_zero(
    temperature: float, k: int, objective: Objective
) -> None:
    c = case(temperature)
    own = targets((c.hidden @ c.weight.t()).detach(), k, temperature)
    c = c._replace(teacher=own, alpha=torch.ones(N, dtype=torch.float64))
    out = fused(c, objective=objective)
    assert abs(out.kd_sum.item()) < 1e-12
    assert abs(out.loss.item()) < 1e-12
    assert max(g.abs().max().item() for g in gradients(out.loss, c)) < 1e-12


@every_objective
@pytest.mark.parametrize("temperature", GRID)
def test_a_head_that_is_everything_equals_dense(temperature: float, objective: Objective) -> None:
    c = case(temperature)
    g = torch.Generator().manual_seed(7)
    log_p = torch.log_softmax(torch.randn(N, V, dtype=torch.float64, generator=g) * 2, -1)
    c = c._replace(teacher=targets(log_p, V, temperature), alpha=torch.ones(N))
    logits = c.hidden @ c.weight.t()
    full = full_divergence(log_p, logits, temperature, objective.kind, beta=objective.beta)
    whole = temperature**2 * full.sum() / N
    out = fused(c, objective=objective)
    torch.testing.assert_close(out.loss, whole)
    close(gradients(out.loss, c), gradients(whole, c))


@every_objective
@pytest.mark.parametrize("temperature", GRID)
@pytest.mark.parametrize("chunk", [1, 3, 4, 256])
def test_fused_equals_the_dense_reference_for_every_chunking(
    temperature: float, chunk: int, objective: Objective
) -> None:
    c = case(temperature)
    expected = dense(c, objective=objective)
    out = fused(c, objective=objective, chunk=chunk)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c))


@every_objective
@pytest.mark.parametrize("temperature", GRID)
def test_gradient_is_that_of_the_returned_loss(temperature: float, objective: Objective) -> None:
    """Finite differences: T² belongs to the gradient, not only to the number shown."""
    c = case(temperature, n=4, v=9, k=3)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return fused(c._replace(hidden=hidden, weight=weight), 7, objective).loss

    assert torch.autograd.gradcheck(loss, (c.hidden, c.weight), eps=1e-6, atol=1e-7)


def test_bucket_without_a_residual_off_the_support_passes_finite_differences() -> None:
    c = case(1.0, n=3, v=9, k=3)
    log_w = torch.log_softmax(c.teacher.log_w, -1)
    none = torch.full((3,), -torch.inf, dtype=torch.float64)
    c = c._replace(teacher=replace(c.teacher, log_w=log_w, log_r=none))

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return fused(c._replace(hidden=hidden), denominator=3).loss

    assert torch.autograd.gradcheck(loss, (c.hidden,), eps=1e-6, atol=1e-7)


def test_hand_computed_value() -> None:
    """Two ids known at .5 and .25, the rest .25; a uniform student over four ids at T = 1.

    KL = .5 ln(.5/.25) + .25 ln(.25/.25) + .25 ln(.25/.5) = .25 ln 2; CE = ln 4.
    """
    teacher = SparseTargets(
        ids=torch.tensor([[2, 0]]),
        log_w=torch.tensor([[0.5, 0.25]]).log(),
        log_r=torch.tensor([0.25]).log(),
        temperature=1.0,
    )
    out = fused_loss(
        torch.zeros(1, 3),
        torch.ones(4, 3),
        labels=torch.tensor([1]),
        alpha=torch.tensor([0.75]),
        teacher=teacher,
        denominator=2,
    )
    two = torch.log(torch.tensor(2.0)).item()
    assert out.kd_sum.item() == pytest.approx(0.25 * two, abs=1e-6)
    assert out.ce_sum.item() == pytest.approx(2 * two, abs=1e-6)
    assert out.loss.item() == pytest.approx((0.75 * 0.25 + 0.25 * 2) * two / 2, abs=1e-6)
    assert (out.kd_tokens, out.ce_tokens) == (1, 1)


@every_objective
def test_reported_kd_is_the_forward_kl_without_a_temperature_factor(objective: Objective) -> None:
    c = case(2.0)
    expected = dense_bucket(c.hidden @ c.weight.t(), c.teacher).sum()
    torch.testing.assert_close(fused(c, objective=objective).kd_sum, expected.detach())


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (OBJECTIVES[1], 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)),
        (OBJECTIVES[4], 0.5 * (0.25 + 0 + 0.25)),
        (
            OBJECTIVES[3],  # m = .1 p + .9 q = (.275, .25, .475)
            0.1 * (0.5 * math.log(0.5 / 0.275) + 0.25 * math.log(0.25 / 0.475))
            + 0.9 * (0.25 * math.log(0.25 / 0.275) + 0.5 * math.log(0.5 / 0.475)),
        ),
    ],
)
def test_hand_computed_divergences(objective: Objective, expected: float) -> None:
    """Teacher (.5, .25 | .25), a uniform student over four ids (.25, .25 | .5)."""
    teacher = SparseTargets(
        torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]).log(), 1.0
    )
    out = fused_loss(
        torch.zeros(1, 3),
        torch.ones(4, 3),
        labels=torch.tensor([-1]),
        alpha=torch.ones(1),
        teacher=teacher,
        denominator=1,
        divergence=divergence_for(objective),
    )
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_bucket_of_nothing_keeps_reverse_kl_finite() -> None:
    c = case(1.0)
    none = torch.full((N,), -torch.inf, dtype=torch.float64)
    log_w = torch.log_softmax(c.teacher.log_w, -1)
    c = c._replace(teacher=replace(c.teacher, log_w=log_w, log_r=none))
    for objective in OBJECTIVES:
        out = fused(c, objective=objective)
        assert out.loss.isfinite()
        assert all(g.isfinite().all() for g in gradients(out.loss, c))


@every_objective
def test_padded_rows_of_the_head_get_no_mass_and_no_gradient(objective: Objective) -> None:
    c = case(1.0, v=V)
    g = torch.Generator().manual_seed(3)
    padding = 50 * torch.randn(8, D, dtype=torch.float64, generator=g)
    wide = torch.cat([c.weight.detach(), padding]).requires_grad_()
    plain = fused(c, objective=objective)
    padded = fused(c._replace(weight=wide), objective=objective, vocabulary=V)
    torch.testing.assert_close(padded.loss, plain.loss, rtol=0, atol=0)
    d_wide = torch.autograd.grad(padded.loss, wide)[0]
    assert d_wide[V:].abs().max().item() == 0
    close([d_wide[:V]], [torch.autograd.grad(plain.loss, c.weight)[0]])


@every_objective
def test_nothing_supervised_is_zero_and_not_nan(objective: Objective) -> None:
    c = case(1.0, n=0)
    out = fused(c, 0, objective)
    d_hidden, d_weight = gradients(out.loss, c)
    assert out.loss.item() == 0
    assert d_hidden.shape == (0, D)
    assert d_weight.abs().max().item() == 0


@every_objective
@pytest.mark.parametrize("temperature", GRID)
@pytest.mark.parametrize("gap", [20.0, 120.0, 900.0])
def test_a_vanishing_rest_stays_finite(
    temperature: float, gap: float, objective: Objective
) -> None:
    """q_tail of e^−20 (2e-9) and far less than fp32 holds beside 1, where teacher r > 0."""
    logits = torch.full((2, 6), -gap)
    logits[:, 0] = 0.0
    weight = torch.eye(6)
    teacher = SparseTargets(
        torch.tensor([[0], [0]]),
        torch.tensor([[0.9], [0.9]]).log(),
        torch.tensor([0.1, 0.1]).log(),
        temperature,
    )
    hidden = logits.requires_grad_()
    out = fused_loss(
        hidden,
        weight,
        labels=torch.tensor([0, 1]),
        alpha=torch.full((2,), 0.5),
        teacher=teacher,
        denominator=2,
        divergence=divergence_for(objective),
    )
    exact = logits.detach().double().requires_grad_()
    expected = dense_loss(
        exact,
        labels=torch.tensor([0, 1]),
        alpha=torch.full((2,), 0.5).double(),
        teacher=teacher,
        denominator=2,
        kind=objective.kind,
        beta=objective.beta,
    )
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(out.loss, hidden)[0]
    want = torch.autograd.grad(expected, exact)[0]
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


@every_objective
def test_tokens_without_a_teacher_or_without_a_label(objective: Objective) -> None:
    c = case(2.0)
    log_w, ids, log_r = c.teacher.log_w.clone(), c.teacher.ids.clone(), c.teacher.log_r.clone()
    log_w[0], ids[0], log_r[0] = -torch.inf, 0, -torch.inf
    alpha, labels = c.alpha.clone(), c.labels.clone()
    alpha[0], alpha[1], labels[1] = 0, 1, -1
    c = c._replace(teacher=SparseTargets(ids, log_w, log_r, 2.0), alpha=alpha, labels=labels)
    out = fused(c, objective=objective, chunk=4)
    expected = dense(c, objective=objective)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c))
    assert (out.kd_tokens, out.ce_tokens) == (N - 1, N - 1)


def test_alpha_zero_is_plain_cross_entropy() -> None:
    c = case(1.0)
    for teacher in (c.teacher, None):
        expected = torch.nn.functional.cross_entropy(c.hidden @ c.weight.t(), c.labels)
        out = fused(c._replace(alpha=torch.zeros(N), teacher=teacher))
        torch.testing.assert_close(out.loss, expected)
        close(gradients(out.loss, c), gradients(expected, c))


def test_without_gradients_the_value_is_the_same() -> None:
    c = case(2.0)
    with torch.no_grad():
        assert fused(c).loss.item() == fused(c).loss.item()
        quiet = fused(c)
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, fused(c).loss.detach())


def test_a_frozen_head_gets_no_gradient() -> None:
    c = case(1.0)
    frozen = c._replace(weight=c.weight.detach())
    out = fused(frozen)
    out.loss.backward()
    close([c.hidden.grad], [gradients(fused(c).loss, c)[0]])
    assert frozen.weight.grad is None


def test_loss_scales_its_gradient() -> None:
    c = case(1.0)
    plain = gradients(fused(c).loss, c)
    close(gradients(fused(c).loss * 3, c), [3 * g for g in plain])


@every_objective
def test_bfloat16_weights_are_summed_in_fp32(objective: Objective) -> None:
    c = case(1.0)
    low = c._replace(
        hidden=c.hidden.detach().bfloat16().requires_grad_(),
        weight=c.weight.detach().bfloat16().requires_grad_(),
    )
    out = fused(low, objective=objective, chunk=4)
    assert out.loss.dtype == torch.float32
    exact = c._replace(
        hidden=low.hidden.detach().double().requires_grad_(),
        weight=low.weight.detach().double().requires_grad_(),
    )
    whole = fused(exact, objective=objective).loss
    torch.testing.assert_close(out.loss.double(), whole, rtol=2e-2, atol=2e-2)
    for got, want in zip(gradients(out.loss, low), gradients(whole, exact), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=0.1, atol=2e-2)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 6),
    v=st.integers(2, 12),
    k=st.integers(1, 16),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 7),
    temperature=st.sampled_from(GRID),
    seed=st.integers(0, 999),
    objective=st.sampled_from(OBJECTIVES),
)
def test_any_shape_agrees_with_the_reference(
    *,
    n: int,
    v: int,
    k: int,
    padding: int,
    chunk: int,
    temperature: float,
    seed: int,
    objective: Objective,
) -> None:
    c = case(temperature, n=n, v=v, k=k, seed=seed)
    wide = torch.cat([c.weight.detach(), torch.ones(padding, D, dtype=torch.float64)])
    c = c._replace(weight=wide.requires_grad_())
    out = fused(c, n, objective, vocabulary=v, chunk=chunk)
    expected = dense(c, n, objective, vocabulary=v)
    torch.testing.assert_close(out.loss, expected)
    close(gradients(out.loss, c), gradients(expected, c), 1e-9)
