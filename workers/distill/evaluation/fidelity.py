"""How close a student's distribution is to its teacher's, on the tokens of given answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.specs.training import Objective
from workers.distill.batches import Collator
from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.heads import SplitHead, split_head
from workers.distill.values import RenderedConversation, StudentBatch

CHUNK = 256


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Sums over the target tokens of one conversation: KL in nats, and top-1 agreements."""

    kl: float
    agreements: int
    tokens: int


@torch.inference_mode()
def fidelity(
    student: Any,
    teacher: Any,
    rendered: Sequence[RenderedConversation],
    *,
    vocabulary: int,
    batch_size: int,
    callbacks: Callbacks,
) -> list[Fidelity]:
    """Return KL(teacher ‖ student) at T = 1 and top-1 agreement for each conversation, in order.

    Over the first `vocabulary` rows of both heads; logits exist for 256 positions at a time. A
    teacher that is the student itself is asked once. Errors: Stopped.
    """
    student.eval()
    teacher.eval()
    of_teacher = split_head(teacher)
    heads = of_teacher, of_teacher if student is teacher else split_head(student)
    collate = Collator(None, Objective(kind="ce", alpha=0.0))
    order = sorted(range(len(rendered)), key=lambda i: (len(rendered[i].input_ids), i))
    out: dict[int, Fidelity] = {}
    for start in range(0, len(order), batch_size):
        if callbacks.should_stop():
            raise Stopped(f"Stopped after {len(out)} conversations.")
        chosen = order[start : start + batch_size]
        batch = collate([rendered[i] for i in chosen])
        rows = torch.cat(list(_rows(heads, batch, vocabulary)))
        counts = [int(rendered[i].target_mask[1:].sum()) for i in chosen]
        for index, part in zip(chosen, torch.split(rows, counts), strict=True):
            kl, agreements = part.sum(0).tolist()
            out[index] = Fidelity(kl=kl, agreements=int(agreements), tokens=len(part))
        callbacks.progress(len(out), len(rendered), "conversations")
    return [out[i] for i in range(len(rendered))]


def _rows(
    heads: tuple[SplitHead, SplitHead], batch: StudentBatch, vocabulary: int
) -> Iterator[torch.Tensor]:
    """Yield [c, 2] float64 per chunk of target tokens: KL in nats, and 1 where the tops agree."""
    teacher, student = heads
    of_teacher = _states(teacher, batch)
    states = of_teacher, of_teacher if student is teacher else _states(student, batch)
    for start in range(0, batch.target_tokens, CHUNK):
        log_p, log_q = (
            torch.log_softmax((s[start : start + CHUNK] @ h.weight[:vocabulary].t()).float(), -1)
            for s, h in zip(states, heads, strict=True)
        )
        agree = (log_p.argmax(-1) == log_q.argmax(-1)).double()
        kl = (log_p.exp() * log_p.sub(log_q)).sum(-1).double()
        yield torch.stack([kl, agree], -1).cpu()


def _states(head: SplitHead, batch: StudentBatch) -> torch.Tensor:
    """Return the hidden states [target tokens, D] that predict the targets."""
    device = head.weight.device
    hidden = head.hidden(batch.input_ids.to(device), batch.attention_mask.to(device))
    return hidden.reshape(-1, hidden.shape[-1])[batch.positions.to(device)]
