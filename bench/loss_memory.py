"""Extra peak memory of the loss and its gradients, in units of 4·N·V bytes, dW counted.

`python -m bench.loss_memory [--json] [--save] [--quick]`. Each variant gets random hidden states
[N, D], a head [V, D], labels, and what it needs of the teacher, and leaves gradients of states and
head. N is 8,192, or smaller where the greediest variant would not fit this machine.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bench import report
from workers.distill.losses.fused import fused_loss
from workers.distill.values import SparseTargets

HEAD, WIDTH, CHUNK, ALPHA, TEMPERATURE = 32, 576, 256, 0.7, 2.0
VOCABULARIES = (49_152, 151_936)
MOST_TOKENS, MOST_UNITS = 8_192, 10
BAR = 0.70
Loss = Callable[["Problem"], torch.Tensor]


class Problem:
    """Random states and head of a student and a teacher, and the teacher's stored rows."""

    def __init__(self, tokens: int, vocabulary: int) -> None:
        torch.manual_seed(0)
        self.tokens, self.vocabulary = tokens, vocabulary
        self.hidden = torch.randn(tokens, WIDTH, requires_grad=True)
        self.weight = torch.randn(vocabulary, WIDTH).mul_(0.05).requires_grad_()
        self.labels = torch.randint(0, vocabulary, (tokens,))
        self.teacher_hidden = torch.randn(tokens, WIDTH)
        self.teacher_weight = torch.randn(vocabulary, WIDTH).mul_(0.05)
        start = torch.randint(0, vocabulary - HEAD, (tokens, 1))
        self.stored = SparseTargets(
            ids=start + torch.arange(HEAD),
            log_w=torch.full((tokens, HEAD), 0.9 / HEAD).log(),
            log_r=torch.full((tokens,), 0.1).log(),
            temperature=TEMPERATURE,
        )

    def part(self, start: int, stop: int) -> SparseTargets:
        s = self.stored
        return SparseTargets(
            s.ids[start:stop], s.log_w[start:stop], s.log_r[start:stop], s.temperature
        )


def ours(p: Problem) -> torch.Tensor:
    """Return the product's loss: chunks that write their gradient and are gone."""
    return fused_loss(
        p.hidden,
        p.weight,
        labels=p.labels,
        alpha=torch.full((p.tokens,), ALPHA),
        teacher=p.stored,
        denominator=p.tokens,
        chunk=CHUNK,
    ).loss


def dense(p: Problem) -> torch.Tensor:
    """Return the common recipe: whole logits of both, KL of softmaxes at T, and CE."""
    with torch.no_grad():
        theirs = p.teacher_hidden @ p.teacher_weight.t()
    logits = p.hidden @ p.weight.t()
    kd = functional.kl_div(
        functional.log_softmax(logits / TEMPERATURE, -1),
        functional.softmax(theirs / TEMPERATURE, -1),
        reduction="batchmean",
    )
    ce = functional.cross_entropy(logits, p.labels)
    return ALPHA * TEMPERATURE**2 * kd + (1 - ALPHA) * ce


def _stored_kl(logits: torch.Tensor, rows: SparseTargets) -> torch.Tensor:
    log_q = functional.log_softmax(logits / TEMPERATURE, -1).gather(1, rows.ids)
    return (rows.log_w.exp() * (rows.log_w - log_q)).sum()


def autograd_chunks(p: Problem) -> torch.Tensor:
    """Return stored rows in chunks of whole logits, as DistillKit does: autograd keeps them all."""
    logits = p.hidden @ p.weight.t()
    starts = range(0, p.tokens, CHUNK)
    kd = sum(_stored_kl(logits[s : s + CHUNK], p.part(s, s + CHUNK)) for s in starts)
    ce = functional.cross_entropy(logits, p.labels)
    return ALPHA * TEMPERATURE**2 * kd / p.tokens + (1 - ALPHA) * ce


def checkpointed_chunks(p: Problem) -> torch.Tensor:
    """Return stored rows, each chunk's logits made again in the backward pass."""

    def part(
        hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, start: int
    ) -> torch.Tensor:
        logits = hidden @ weight.t()
        kd = _stored_kl(logits, p.part(start, start + len(hidden)))
        ce = functional.cross_entropy(logits, labels, reduction="sum")
        return ALPHA * TEMPERATURE**2 * kd + (1 - ALPHA) * ce

    total = torch.zeros(())
    for start in range(0, p.tokens, CHUNK):
        stop = start + CHUNK
        found: Any = checkpoint(
            part, p.hidden[start:stop], p.weight, p.labels[start:stop], start, use_reentrant=False
        )
        total = total + found
    return total / p.tokens


def liger(p: Problem) -> torch.Tensor:
    """Return Liger's chunked JSD on both models' hidden states (pure torch; not compiled)."""
    # In no extra: its wheel asks for triton. `make bench-setup` takes it without dependencies.
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415 - this variant's

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - ALPHA,
        weight_soft_loss=ALPHA,
        beta=0.5,
        temperature=TEMPERATURE,
        compiled=False,
        chunk_size=CHUNK,
    )
    found = loss(p.hidden, p.weight, p.teacher_hidden, p.teacher_weight, p.labels)
    made: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return made


VARIANTS: dict[str, Loss] = {
    "ours": ours,
    "checkpointed_chunks": checkpointed_chunks,
    "liger": liger,
    "autograd_chunks": autograd_chunks,
    "dense": dense,
}


def measure(name: str, ask: report.Facts) -> report.Facts:
    """Return peak above what was there ÷ (4·N·V), and processor seconds, of one loss."""
    warm, loss = Problem(CHUNK, 1024), VARIANTS[name]
    loss(warm).backward()  # type: ignore[no-untyped-call] # loads code and thread pools
    problem = Problem(ask["tokens"], ask["vocabulary"])
    seconds = 0.0

    def action() -> None:
        nonlocal seconds
        seconds = report.cpu_seconds(lambda: loss(problem).backward())  # type: ignore[no-untyped-call]

    extra = report.extra_peak(action)
    return {"factor": extra / (4 * ask["tokens"] * ask["vocabulary"]), "cpu_seconds": seconds}


def tokens_that_fit(vocabulary: int, most: int) -> int:
    """Return 8,192 or half of it, again and again, until the greediest variant fits."""
    tokens = most
    while tokens > CHUNK and 4 * tokens * vocabulary * MOST_UNITS > report.available_bytes():
        tokens //= 2
    return tokens


def compare(asked: argparse.Namespace) -> report.Facts:
    """Run every variant on every vocabulary; return factors and seconds."""
    found: report.Facts = {}
    for vocabulary in VOCABULARIES:
        tokens = tokens_that_fit(vocabulary, 512 if asked.quick else MOST_TOKENS)
        rows: report.Facts = {}
        for name in VARIANTS:
            report.say(f"V {vocabulary}, N {tokens}: {name}")
            try:
                ask = {"tokens": tokens, "vocabulary": vocabulary}
                rows[name] = report.variant("bench.loss_memory", name, asked, **ask)
            except SystemExit as error:
                if name != "liger":
                    raise
                rows[name] = {"left_out": str(error).splitlines()[-1]}
        found[str(vocabulary)] = {"tokens": tokens, "variants": rows}
    # N only has to fit all variants to be fair; ours alone is measured at the bar's own N too.
    if not asked.quick:
        ask = {"tokens": MOST_TOKENS, "vocabulary": VOCABULARIES[-1]}
        found["ours_at_full_size"] = ask | report.variant("bench.loss_memory", "ours", asked, **ask)
    return found


def table(figures: report.Facts) -> str:
    """Return factors and seconds as a plain table."""
    lines = [f"{'peak ÷ 4·N·V':<22}" + "".join(f"{f'V {v:,}':>24}" for v in VOCABULARIES)]
    for name in VARIANTS:
        cells = []
        for vocabulary in VOCABULARIES:
            row = figures[str(vocabulary)]["variants"][name]
            where = f"N {figures[str(vocabulary)]['tokens']:,}"
            shown = (
                row.get("left_out", "")[:14] or f"{row['factor']:.2f} {row['cpu_seconds']:.0f} s"
            )
            cells.append(f"{f'{shown} ({where})':>24}")
        lines.append(f"{name:<22}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Compare, or measure one variant when the comparison asks for it."""
    asked = report.options(__doc__ or "").parse_args()
    if report.answered(asked, measure):
        return
    figures = compare(asked)
    bars = []  # dW alone is D/N units, so small sizes cannot be judged
    for v in VOCABULARIES if not asked.quick else ():
        factor = figures[str(v)]["variants"]["ours"]["factor"]
        tokens = figures[str(v)]["tokens"]
        bars.append(report.Bar(f"ours, × 4·N·V at N {tokens:,}, V {v:,}", factor, BAR))
    if full := figures.get("ours_at_full_size"):
        bars.append(report.Bar("ours, × 4·N·V at N 8,192, V 151,936", full["factor"], BAR))
    report.finish("loss_memory", asked, figures, table(figures), bars)


if __name__ == "__main__":
    main()
