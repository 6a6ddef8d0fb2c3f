"""Which validation metric says what weights are the best, and when it has stopped improving."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.distill.callbacks import Callbacks, Silent
from workers.distill.evaluation.scores import exact_match, field_f1
from workers.distill.generate import generate
from workers.distill.values import SparseTargets, StudentBatch

LOSS, AGREEMENT = "validation/loss", "validation/agreement"
_SCORES = {"validation/exact_match": exact_match, "validation/field_f1": field_f1}
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Selection:
    """How snapshots are judged: a metric, whether more of it is better, and the patience with it.

    `label` and `percent` are for sentences: `the highest exact match, 91.0 % of 64`.
    """

    metric: str = LOSS
    label: str = "validation loss"
    higher: bool = False
    percent: bool = False
    patience: int | None = None
    min_delta: float = 0.0

    def better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether a value is better than another by more than `by`; than None, if it is finite."""
        if not math.isfinite(value):
            return False
        if than is None:
            return True
        gain = value - than if self.higher else than - value
        return gain > by

    def nothing_yet(self, value: float) -> bool:
        """Whether nothing is right so far: it may be too early, so patience does not begin."""
        return self.higher and value == 0

    def words(self, value: float | None, count: int | None) -> str:
        """Return `highest exact match, 91.0 % of 64 conversations`."""
        side = "highest" if self.higher else "lowest"
        if value is None:
            return f"{side} {self.label}"
        shown = f"{100 * value:.1f} %" if self.percent else f"{value:.4f}"
        return f"{side} {self.label}, {shown}{f' of {count} conversations' if count else ''}"


@dataclass(frozen=True, slots=True)
class Answers:
    """Validation conversations that the student answers greedily, and what is right."""

    metric: str
    tokenizer: Any
    prompts: Sequence[NDArray[np.int32]]
    truths: Sequence[str]
    max_new_tokens: int
    batch_size: int = 16

    def sums(
        self, model: Any, callbacks: Callbacks, share: tuple[int, int] = (0, 1)
    ) -> tuple[float, int]:
        """Return the scores' sum and how many answers have one; of every n-th by `share`.

        Errors: GenerationStopped when asked to.
        """
        rank, ranks = share
        prompts, truths = self.prompts[rank::ranks], self.truths[rank::ranks]
        answers = generate(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            callbacks=_Quiet(callbacks),
        )
        score = _SCORES[self.metric]
        found = [score(a.text, truth) for a, truth in zip(answers, truths, strict=True)]
        known = [float(value) for value in found if value is not None]
        return math.fsum(known), len(known)


def agreements(
    states: torch.Tensor, weight: torch.Tensor, batch: StudentBatch, vocabulary: int | None
) -> int:
    """Return for how many supervised positions the student's top token is the right one.

    states: [N, D] that predict; weight: [V, D]. Right is the teacher's top token, and the label
    where there is no teacher row.
    """
    right, teacher = batch.labels, batch.teacher
    if isinstance(teacher, SparseTargets):
        right = torch.where(torch.isfinite(teacher.log_w[:, 0]), teacher.ids[:, 0], right)
    elif teacher is not None:
        right = _tops(teacher.hidden, teacher.weight)
    return int((_tops(states, weight[: vocabulary or len(weight)]) == right).sum())


def _tops(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Return the likeliest id [N] after each of the states, a chunk at a time."""
    tops = [(part.to(head.dtype) @ head.t()).argmax(-1) for part in torch.split(states, _CHUNK)]
    return torch.cat(tops) if tops else torch.zeros(0, dtype=torch.int64, device=head.device)


@dataclass(slots=True)
class Validation:
    """What a training is validated on, and how it is judged by that."""

    batches: Sequence[Any] = ()
    selection: Selection = field(default_factory=Selection)
    answers: Answers | None = None

    def measured(self, values: Mapping[str, float], callbacks: Callbacks) -> float:
        """Return the value that judges; what cannot be measured gives way to the loss."""
        if self.selection.metric not in values:
            callbacks.log(
                f"The {self.selection.label} cannot be measured on the validation conversations: "
                "the best is chosen by the validation loss.",
                "warning",
            )
            self.selection = Selection(
                patience=self.selection.patience, min_delta=self.selection.min_delta
            )
        return values[self.selection.metric]


class _Quiet(Silent):
    """Answers for a validation are no progress of the training; only a stop gets through."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks

    def should_stop(self) -> bool:
        return self._callbacks.should_stop()
