"""The one training loop: every objective, fine-tuning included (alpha 0), goes through it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.specs.fingerprint import file_sha256, fingerprint
from app.specs.training import Schedule, Trainable, TrainingSpec
from workers.distill.batches import BatchSource, StepBatches
from workers.distill.callbacks import Callbacks
from workers.distill.checkpointing import (
    MANIFEST,
    Snapshot,
    SnapshotState,
    drop_old_snapshots,
    find_snapshot,
    load_snapshot,
    load_weights,
    snapshot_folder,
    verify_snapshot,
    write_snapshot,
)
from workers.distill.errors import DistillError, NonFiniteLoss
from workers.distill.heads import split_head
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.values import SparseTargets, StudentBatch


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training did; the model passed in holds the weights.

    `step`: optimiser steps done. `kept_step`: whose weights the model holds, the best validated one
    where there is a validation, else the last. `losses`: train/loss of this attempt's steps.
    """

    step: int
    kept_step: int
    stopped_early: bool
    resumed_from_step: int | None
    tokens: int
    seconds: float
    losses: tuple[float, ...]
    best_value: float | None
    snapshot: Snapshot | None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def learning_rate(schedule: Schedule, step: int) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a cosine to the minimum."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    span = max(1, schedule.steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - schedule.warmup_steps) / span)))
    low = schedule.min_lr_ratio
    return schedule.learning_rate * (low + (1 - low) * cosine)


def choose_trainable(model: Any, trainable: Trainable) -> list[torch.nn.Parameter]:
    """Set requires_grad after the spec and return what moves.

    `top_layers` n: the last n layers, the final norm and an untied head. A tied head is the
    embedding, so it stays with it. Errors: DistillError where there are fewer layers.
    """
    embedding = model.get_input_embeddings().weight
    if trainable.top_layers is None:
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=True)
        embedding.requires_grad_(not trainable.freeze_embeddings)
    else:
        layers = model.base_model.layers
        if trainable.top_layers > len(layers):
            raise DistillError(
                f"top_layers is {trainable.top_layers}, but the checkpoint has {len(layers)} "
                f"layers. Take at most {len(layers)}."
            )
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=False)
        head = model.get_output_embeddings()
        for module in (*layers[-trainable.top_layers :], model.base_model.norm, head):
            for parameter in module.parameters():
                parameter.requires_grad_(parameter is not embedding)
    return [p for p in model.parameters() if p.requires_grad]


def train(
    model: Any,
    batches: BatchSource,
    spec: TrainingSpec,
    *,
    callbacks: Callbacks,
    workdir: Path,
    resume_from: Sequence[Path] = (),
    validation: Sequence[StudentBatch] = (),
    vocabulary: int | None = None,
) -> TrainResult:
    """Train `model` in place on `batches` and return what happened.

    workdir: where snapshots go. resume_from: snapshot folders, or folders of them, of earlier
    attempts; the newest intact one is continued, bit for bit on a CPU. validation: batches scored
    every `validate_every` steps. vocabulary: ids that can get mass (padding rows of the head get
    none). Errors: NonFiniteLoss, SnapshotError, HeadError.
    """
    loop = _Loop(model, batches, spec, callbacks, workdir, validation, vocabulary)
    callbacks.phase("load")
    loop.resume(resume_from)
    callbacks.phase("train")
    return loop.run()


class _Loop:
    """State of one attempt; `self.state` is exactly what a snapshot keeps."""

    def __init__(
        self,
        model: Any,
        batches: BatchSource,
        spec: TrainingSpec,
        callbacks: Callbacks,
        workdir: Path,
        validation: Sequence[StudentBatch],
        vocabulary: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.batches, self.spec, self.callbacks = model, batches, spec, callbacks
        self.workdir, self.validation, self.clock = workdir, validation, clock
        self.schedule = spec.schedule
        self.parameters = choose_trainable(model, spec.trainable)
        self.scorer = _Scorer(model, spec, vocabulary)
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=self.schedule.learning_rate,
            betas=self.schedule.betas,
        )
        self.state = SnapshotState(step=0, cursor=0, spec_hash=fingerprint(spec))
        self.saved: Snapshot | None = None
        self.best: Snapshot | None = None
        self.resumed: int | None = None
        self.losses: list[float] = []
        self.seen = 0

    def resume(self, places: Sequence[Path]) -> None:
        found = find_snapshot(places, self.state.spec_hash, self.callbacks.log)
        if found is None:
            torch.manual_seed(self.spec.seed)
            return
        self.state = load_snapshot(found, self.model, self.optimizer)
        self.saved, self.resumed = found, found.step
        if self.state.best_step is not None:
            self.best = self._best_in([*places, found.folder.parent])
        self.callbacks.log(f"Resumed from the snapshot of step {found.step}.")

    def run(self) -> TrainResult:
        started = self.clock()
        self.batches.cursor = self.state.cursor
        self.model.train()
        stopped = False
        for step in self.batches:
            if stopped := self.callbacks.should_stop():
                break
            self._step(step)
            self._after_step()
        stopped = stopped and self.state.step < self.schedule.steps
        if self.saved is None or self.saved.step != self.state.step:
            self._save(best=False)
        seconds = self.clock() - started
        kept = self.state.step
        if self.best is not None and not stopped and self.best.step != kept:
            self.callbacks.phase("save best")
            verify_snapshot(self.best.folder)
            load_weights(self.best.folder, self.model)
            kept = self.best.step
        self.model.eval()
        return TrainResult(
            step=self.state.step,
            kept_step=kept,
            stopped_early=stopped,
            resumed_from_step=self.resumed,
            tokens=self.seen,
            seconds=seconds,
            losses=tuple(self.losses),
            best_value=self.state.best_value,
            snapshot=self.saved,
        )

    def _step(self, step: StepBatches) -> None:
        started = self.clock()
        rate = learning_rate(self.schedule, step.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        totals = Totals()
        tokens = 0
        for batch in step.micro:
            sums = self.scorer(batch, step.denominator)
            loss: Any = sums.loss
            loss.backward()
            totals.add(sums)
            tokens += int(batch.attention_mask.sum())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.schedule.max_grad_norm)
        grad_norm = float(norm)
        if not (math.isfinite(totals.loss) and math.isfinite(grad_norm)):
            raise NonFiniteLoss(
                f"The loss or its gradient stopped being a number at step {step.step + 1} "
                f"(learning rate {rate:.2g}). Lower the learning rate, or lengthen the warm-up.",
                step=step.step + 1,
            )
        self.optimizer.step()
        self.seen += tokens
        self.losses.append(totals.loss)
        self.state = replace(
            self.state,
            step=step.step + 1,
            cursor=step.step + 1,
            tokens=self.state.tokens + tokens,
            learning_rate=rate,
        )
        values = totals.means("train") | {
            "optim/grad_norm": grad_norm,
            "optim/learning_rate": rate,
            "perf/tokens_per_second": tokens / max(self.clock() - started, 1e-9),
            "data/tokens": float(self.state.tokens),
        }
        self.callbacks.metrics(self.state.step, values)
        self.callbacks.progress(self.state.step, self.schedule.steps, "steps")

    def _after_step(self) -> None:
        number, last = self.state.step, self.state.step == self.schedule.steps
        better = False
        if self.validation and (number % self.schedule.validate_every == 0 or last):
            better = self._validate()
        if better or number % self.schedule.snapshot_every == 0 or last:
            self._save(best=better)

    def _validate(self) -> bool:
        """Score the validation batches; return whether this is the best so far."""
        values = evaluate_batches(self.scorer, self.validation)
        self.model.train()
        self.callbacks.metrics(self.state.step, values)
        value = values["validation/loss"]
        if not math.isfinite(value):
            return False
        if self.state.best_value is not None and value >= self.state.best_value:
            return False
        self.state = replace(self.state, best_step=self.state.step, best_value=value)
        return True

    def _save(self, *, best: bool) -> None:
        self.saved = write_snapshot(self.workdir, self.model, self.optimizer, self.state)
        if best:
            self.best = self.saved
        self.callbacks.snapshot(
            self.saved.step,
            self.saved.folder,
            self.saved.manifest_sha256,
            best=best,
            value=self.state.best_value if best else None,
        )
        drop_old_snapshots(self.workdir, self.state.best_step)

    def _best_in(self, places: Sequence[Path]) -> Snapshot | None:
        wanted = snapshot_folder(Path(), self.state.best_step or 0).name
        for place in places:
            for folder in (place, place / wanted):
                if folder.name == wanted and folder.is_dir():
                    digest = file_sha256(folder / MANIFEST)
                    return Snapshot(self.state.best_step or 0, folder, digest)
        self.callbacks.log("The best snapshot is gone; the last weights will be kept.", "warning")
        return None


class _Scorer:
    """Forward pass and fused loss of a batch, on the model's device, in the run's precision."""

    def __init__(self, model: Any, spec: TrainingSpec, vocabulary: int | None) -> None:
        self.model = model
        self.split = split_head(model)
        self.chunk = spec.loss_chunk_tokens
        self.vocabulary = vocabulary
        self.device = self.split.weight.device
        on_gpu = self.device.type == "cuda"
        # Few CPUs multiply bfloat16 faster than float32, so `auto` uses it on accelerators only.
        self.autocast = spec.precision == "bfloat16" or (spec.precision == "auto" and on_gpu)

    def __call__(self, batch: StudentBatch, denominator: float) -> LossSums:
        """Return the batch's share of the loss, with gradient where enabled."""
        input_ids = batch.input_ids.to(self.device)
        attention = batch.attention_mask.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            hidden = self.split.hidden(input_ids, attention)
        states = hidden.flatten(0, 1)[batch.positions.to(self.device)]
        return fused_loss(
            states,
            self.split.weight.to(states.dtype),
            labels=batch.labels.to(self.device),
            alpha=batch.alpha.to(self.device),
            teacher=_on(batch.teacher, self.device),
            denominator=denominator,
            vocabulary=self.vocabulary,
            chunk=self.chunk,
        )


def _on(teacher: SparseTargets | None, device: torch.device) -> SparseTargets | None:
    if teacher is None or teacher.ids.device == device:
        return teacher
    return SparseTargets(
        teacher.ids.to(device),
        teacher.log_w.to(device),
        teacher.log_r.to(device),
        teacher.temperature,
    )


class Totals:
    """Sums of a step's (or a validation's) micro-batches, as means per token."""

    def __init__(self) -> None:
        self.loss = self.kd = self.ce = 0.0
        self.kd_tokens = self.ce_tokens = 0

    def add(self, sums: LossSums) -> None:
        self.loss += float(sums.loss.detach())
        self.kd += float(sums.kd_sum)
        self.ce += float(sums.ce_sum)
        self.kd_tokens += sums.kd_tokens
        self.ce_tokens += sums.ce_tokens

    def means(self, prefix: str) -> dict[str, float]:
        out = {f"{prefix}/loss": self.loss}
        if self.kd_tokens:
            out[f"{prefix}/kd_loss"] = self.kd / self.kd_tokens
        if self.ce_tokens:
            out[f"{prefix}/ce_loss"] = self.ce / self.ce_tokens
        return out


@torch.no_grad()
def evaluate_batches(scorer: Any, batches: Sequence[StudentBatch]) -> dict[str, float]:
    """Return validation/loss (the objective), and validation/kl where there are teacher rows."""
    scorer.model.eval()
    denominator = sum(b.target_tokens for b in batches)
    totals = Totals()
    for batch in batches:
        totals.add(scorer(batch, denominator))
    out = {"validation/loss": totals.loss}
    if totals.kd_tokens:
        out["validation/kl"] = totals.kd / totals.kd_tokens
    return out
