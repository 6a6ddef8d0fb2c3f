"""What a step computes: losses, gradients and held-out measures, in as much memory as there is."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from app.specs.training import TrainingSpec
from workers.distill.batches import StepBatches
from workers.distill.errors import CheckpointError, PackingError
from workers.distill.heads import SplitHead, split_head
from workers.distill.losses.choice import divergence_for
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.memory import free_bytes, growth_of, is_out_of_memory, largest_fit
from workers.distill.optimizing import adamw, select_trainable, use_bfloat16
from workers.distill.packing import packing_problem
from workers.distill.ranks import ALONE, Ranks
from workers.distill.selection import AGREEMENT, agreements
from workers.distill.teachers import LiveTeacher
from workers.distill.values import SparseTargets, StudentBatch

ENOUGH_TOKENS = 1024
"""More at once makes a CPU no faster, and conversations alike in length waste less as padding:
with lengths from 16 to 392, micro-batches of four took 0.44 of the time of sixteen at once."""


class NoMemory(Exception):
    """A rank had no memory for its part of a step; nothing was changed by any."""


class Stepper:
    """A model with what moves it: forward and backward of batches, and the probe of their memory.

    Errors: HeadError, PackingError, CheckpointError for a type of model that cannot do it right.
    """

    def __init__(
        self,
        model: Any,
        spec: TrainingSpec,
        *,
        vocabulary: int | None = None,
        live: LiveTeacher | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.spec, self.vocabulary, self.live, self.ranks = spec, vocabulary, live, ranks
        self.device = model.get_input_embeddings().weight.device
        self.bfloat16 = use_bfloat16(spec, self.device)
        self.divergence = divergence_for(spec.objective)
        self.parameters = select_trainable(model, spec.trainable)
        self.split: SplitHead = split_head(model)
        problem = packing_problem(model.config) if spec.schedule.packing else None
        if problem is not None:
            raise PackingError(problem)
        if spec.gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise CheckpointError(
                    f"{type(model).__name__} cannot compute its layers again. Turn gradient "
                    "checkpointing off."
                )
            # The older name is deprecated where the newer one exists.
            newer = getattr(model, "activation_checkpointing_enable", None)
            (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.optimizer = adamw(self.parameters, spec.schedule)

    def forward(self, batch: StudentBatch, denominator: int) -> LossSums:
        """Return the loss of one micro-batch over the step's denominator, with its sums."""
        batch = self.taught(batch)
        return self._sums(batch, self.states(batch), denominator)

    def _sums(self, batch: StudentBatch, hidden: torch.Tensor, denominator: int) -> LossSums:
        """Return the loss of a taught batch from its hidden states [N, D]."""
        weight = self.split.weight
        return fused_loss(
            hidden.to(weight.dtype),
            weight,
            labels=batch.labels,
            alpha=batch.alpha,
            teacher=batch.teacher,
            denominator=denominator,
            vocabulary=self.vocabulary,
            chunk=self.spec.loss_chunk_tokens,
            divergence=self.divergence,
        )

    def taught(self, batch: StudentBatch) -> StudentBatch:
        """Return the batch on the model's device, with what a live teacher says of it."""
        there = _to(batch, self.device)
        if self.live is None:
            return there
        with self._precision():
            return replace(there, teacher=self.live.targets(there))

    def states(self, batch: StudentBatch) -> torch.Tensor:
        """Return the hidden states [N, D] of the supervised positions."""
        with self._precision():
            hidden = self.split.hidden(batch.input_ids, batch.attention_mask, batch.documents)
        return hidden.reshape(-1, hidden.shape[-1])[batch.positions]

    def _precision(self) -> AbstractContextManager[Any]:
        if self.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def backward(self, batches: StepBatches) -> "Totals":
        """Leave the whole step's gradient on every rank; return its sums. Errors: NoMemory."""
        self.optimizer.zero_grad(set_to_none=True)
        totals, full = Totals(), False
        try:
            for micro in batches.micro:
                sums = self.forward(micro, batches.denominator)
                sums.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
                totals.add(sums, int(micro.attention_mask.sum()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            full = True
        if self.ranks.any(full):
            self.optimizer.zero_grad(set_to_none=True)
            raise NoMemory
        self.ranks.add_gradients(self.parameters)
        return totals.over(self.ranks)

    def clipped_norm(self) -> float:
        """Shorten the gradient to the longest allowed, and return the norm it had."""
        most = self.spec.schedule.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, most))

    def fitting(self, longest: Callable[[int], StudentBatch]) -> tuple[int, str]:
        """Return how many conversations a micro-batch may have, and a sentence that says so.

        longest: gives a batch of so many of the longest. Weights, gradients and random state are as
        before. Errors: OutOfMemoryError.
        """
        whole = most = -(-self.spec.schedule.batch_size // self.ranks.count)
        free = free_bytes(self.device)
        if self.device.type == "cpu":
            free //= self.ranks.count
            rows = -(-ENOUGH_TOKENS // longest(1).input_ids.shape[1])
            most = min(whole, 1 << (rows - 1).bit_length())
        moments = 2 * sum(p.numel() * p.element_size() for p in self.parameters)
        found, takes = largest_fit(
            most, lambda count: self._probe(longest(count)), beside=moments, free=free
        )
        size = self.ranks.smallest(found)
        reasons = {most: "enough for the processor, with little padding", whole: "the whole batch"}
        why = reasons.get(size, "the most that fits")
        return size, (
            f"Micro-batches of {size} {'conversation' if size == 1 else 'conversations'}, {why}: a "
            f"step of the longest takes up to {takes / 2**20:,.0f} MiB beside the weights, of "
            f"{free / 2**20:,.0f} MiB free."
        )

    def _probe(self, batch: StudentBatch) -> float:
        """Return the bytes that a forward and backward of a batch takes; infinite: too many."""

        def work() -> None:
            self.forward(batch, 1).loss.backward()  # type: ignore[no-untyped-call] # as above

        cuda = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                return growth_of(self.device, work)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return math.inf
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def measure(self, batches: Sequence[StudentBatch], *, agreement: bool) -> dict[str, float]:
        """Return the objective's mean per target token, and its parts, over all ranks.

        agreement: measure too for which share of the tokens the top one is right.
        """
        totals, weight, agreed = Totals(), 0, 0
        for batch in batches[self.ranks.rank :: self.ranks.count]:
            there = self.taught(batch)
            states = self.states(there)
            totals.add(self._sums(there, states, 1), 0)
            weight += batch.target_tokens
            if agreement:
                agreed += agreements(states, self.split.weight, there, self.vocabulary)
        totals.over(self.ranks)
        weight, agreed = map(int, self.ranks.sums([weight, agreed]))
        values = {"validation/loss": totals.loss / max(weight, 1)}
        if totals.kd_tokens:
            values["validation/kl"] = totals.kd / totals.kd_tokens
        if agreement and weight:
            values[AGREEMENT] = agreed / weight
        return values


class Totals:
    """Sums over the micro-batches of a step or a validation."""

    def __init__(self) -> None:
        self.loss = self.kd = self.ce = 0.0
        self.kd_tokens = self.ce_tokens = self.read = 0

    def add(self, sums: LossSums, read: int) -> None:
        """Add a micro-batch of `read` tokens."""
        self.loss += float(sums.loss.detach())
        self.kd += float(sums.kd_sum)
        self.ce += float(sums.ce_sum)
        self.kd_tokens += sums.kd_tokens
        self.ce_tokens += sums.ce_tokens
        self.read += read

    def over(self, ranks: Ranks) -> "Totals":
        """Make these the sums over all ranks, and return them."""
        counts = (self.kd_tokens, self.ce_tokens, self.read)
        found = ranks.sums([self.loss, self.kd, self.ce, *map(float, counts)])
        self.loss, self.kd, self.ce = found[:3]
        self.kd_tokens, self.ce_tokens, self.read = map(int, found[3:])
        return self

    def parts(self, prefix: str) -> dict[str, float]:
        values = {}
        if self.kd_tokens:
            values[f"{prefix}kd_loss"] = self.kd / self.kd_tokens
        if self.ce_tokens:
            values[f"{prefix}ce_loss"] = self.ce / self.ce_tokens
        return values


def _to(batch: StudentBatch, device: torch.device) -> StudentBatch:
    if device.type == "cpu":
        return batch
    return StudentBatch(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        positions=batch.positions.to(device),
        labels=batch.labels.to(device),
        alpha=batch.alpha.to(device),
        teacher=batch.teacher.to(device) if isinstance(batch.teacher, SparseTargets) else None,
        documents=None if batch.documents is None else batch.documents.to(device),
    )
