<<<<<<< HEAD
"""How close a student is to its teacher on given answers: full-vocabulary KL and agreement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
=======
"""How close a student's distribution is to its teacher's, on the tokens of given answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

>>>>>>> shell
import torch

from app.specs.training import Objective
from workers.distill.batches import Collator
from workers.distill.callbacks import Callbacks
<<<<<<< HEAD
from workers.distill.errors import StoppedError
from workers.distill.heads import SplitHead, split_head
from workers.distill.values import RenderedConversation, StudentBatch

_CHUNK = 128
=======
from workers.distill.heads import SplitHead, split_head
from workers.distill.values import RenderedConversation, StudentBatch

CHUNK = 256
>>>>>>> shell


@dataclass(frozen=True, slots=True)
class Fidelity:
<<<<<<< HEAD
    """Sums over the target tokens of one conversation. kl: Σ KL(teacher ‖ student), nats at T = 1.

    agreed: tokens where both put the same id first.
    """

    kl: float
    agreed: int
    tokens: int


def measure_fidelity(
=======
    """Sums over the target tokens of one conversation: KL in nats, and top-1 agreements."""

    kl: float
    agreements: int
    tokens: int


@torch.inference_mode()
def fidelity(
>>>>>>> shell
    student: Any,
    teacher: Any,
    rendered: Sequence[RenderedConversation],
    *,
    vocabulary: int,
    batch_size: int,
    callbacks: Callbacks,
) -> list[Fidelity]:
<<<<<<< HEAD
    """Return one value per conversation, in order.

    Both read the same ids; rows of either head beyond `vocabulary` get no mass. Logits exist for a
    chunk of target tokens at a time. Errors: StoppedError between batches.
    """
    collate = Collator(None, Objective(kind="ce", alpha=0))
    heads = split_head(student), split_head(teacher)
    order = sorted(range(len(rendered)), key=lambda i: (len(rendered[i].input_ids), i))
    out: dict[int, Fidelity] = {}
    for start in range(0, len(order), batch_size):
        if callbacks.should_stop():
            raise StoppedError(f"Scoring was stopped after {start} of {len(order)} conversations.")
        places = order[start : start + batch_size]
        batch = collate([rendered[i] for i in places])
        kl, agreed = _compare(heads, batch, vocabulary)
        owner = (batch.positions // batch.input_ids.shape[1]).numpy()
        for row, place in enumerate(places):
            mine = owner == row
            out[place] = Fidelity(
                kl=float(kl[mine].sum()), agreed=int(agreed[mine].sum()), tokens=int(mine.sum())
            )
        callbacks.progress(start + len(places), len(order), "conversations")
    return [out[i] for i in range(len(rendered))]


@torch.inference_mode()
def _compare(
    heads: tuple[SplitHead, SplitHead], batch: StudentBatch, vocabulary: int
) -> tuple[Any, Any]:
    """Return KL [N] in nats (float64) and agreement [N] (bool) at the batch's target tokens."""
    states = [_states(head, batch) for head in heads]
    size = min(vocabulary, *(head.weight.shape[0] for head in heads))
    kl, agreed = [], []
    for start in range(0, batch.target_tokens, _CHUNK):
        log_q, log_p = (
            torch.log_softmax((s[start : start + _CHUNK] @ h.weight[:size].t()).double(), -1).cpu()
            for s, h in zip(states, heads, strict=True)
        )
        # Never below 0 but for rounding of the sum, which clamping would hide in the mean.
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1).numpy())
        agreed.append((log_p.argmax(-1) == log_q.argmax(-1)).numpy())
    return np.concatenate(kl), np.concatenate(agreed)


def _states(head: SplitHead, batch: StudentBatch) -> torch.Tensor:
    device = head.weight.device
    hidden = head.hidden(batch.input_ids.to(device), batch.attention_mask.to(device))
    return hidden.flatten(0, 1)[batch.positions.to(device)]
=======
    """Return KL(teacher ‖ student) at T = 1 and top-1 agreement for each conversation, in order.

    Over the first `vocabulary` rows of both heads; logits exist for 256 positions at a time.
    """
    student.eval()
    teacher.eval()
    heads = split_head(teacher), split_head(student)
    collate = Collator(None, Objective(kind="ce", alpha=0.0))
    order = sorted(range(len(rendered)), key=lambda i: (len(rendered[i].input_ids), i))
    out: dict[int, Fidelity] = {}
    for start in range(0, len(order), batch_size):
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
    states = []
    for head in heads:
        device = head.weight.device
        hidden = head.hidden(batch.input_ids.to(device), batch.attention_mask.to(device))
        states.append(hidden.reshape(-1, hidden.shape[-1])[batch.positions.to(device)])
    for start in range(0, batch.target_tokens, CHUNK):
        log_p, log_q = (
            torch.log_softmax((s[start : start + CHUNK] @ h.weight[:vocabulary].t()).float(), -1)
            for s, h in zip(states, heads, strict=True)
        )
        agree = (log_p.argmax(-1) == log_q.argmax(-1)).double()
        kl = (log_p.exp() * log_p.sub(log_q)).sum(-1).double()
        yield torch.stack([kl, agree], -1).cpu()
>>>>>>> shell
