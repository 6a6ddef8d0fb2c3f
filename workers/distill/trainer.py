<<<<<<< HEAD
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
=======
"""The one training loop: distillation and fine-tuning (alpha 0) are the same steps."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from app.specs.fingerprint import fingerprint
from app.specs.training import Schedule, Trainable, TrainingSpec
from workers.distill.batches import StepBatches
from workers.distill.callbacks import Callbacks
from workers.distill.checkpointing import (
    MODEL,
    SnapshotState,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
    snapshot_folder,
    snapshot_folders,
)
from workers.distill.checkpoints import load_weights, save_checkpoint
from workers.distill.errors import NonFiniteLossError
from workers.distill.heads import SplitHead, split_head
>>>>>>> shell
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.values import SparseTargets, StudentBatch


<<<<<<< HEAD
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
=======
class Batches(Protocol):
    """Steps to train on; `cursor` is the next one, so that resuming needs a number only."""

    cursor: int

    def __iter__(self) -> Iterator[StepBatches]: ...


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left.

    `folder` is a checkpoint: the best weights by validation loss, or the last where nothing was
    validated; None after a stop (then only snapshots lie in the workdir).
    """

    steps: int
    best_step: int | None
    best_value: float | None
    folder: Path | None
    tokens: int
    seconds: float
    stopped_early: bool


@dataclass(slots=True)
class _Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None


def learning_rate(schedule: Schedule, step: int) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a cosine to min_lr_ratio."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    rest = max(schedule.steps - schedule.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min((step - schedule.warmup_steps) / rest, 1.0)))
    floor = schedule.min_lr_ratio
    return schedule.learning_rate * (floor + (1 - floor) * cosine)


def select_trainable(model: Any, trainable: Trainable) -> list[torch.nn.Parameter]:
    """Mark which weights move and return them.

    `top_layers` n: the last n decoder layers, the final norm, and an untied head. A tied head is
    the embedding: it moves only where all layers do, and never under `freeze_embeddings`.
    """
    base = model.base_model
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    everything = trainable.top_layers is None or trainable.top_layers >= len(base.layers)
    for parameter in model.parameters():
        parameter.requires_grad_(everything)
    if not everything:
        head.requires_grad_(head is not embedding)
        for module in (*base.layers[-(trainable.top_layers or 0) :], base.norm):
            module.requires_grad_(requires_grad=True)
    if trainable.freeze_embeddings:
        embedding.requires_grad_(requires_grad=False)
        head.requires_grad_(requires_grad=False)
    return [p for p in model.parameters() if p.requires_grad]


class Trainer:
    """State of one training. `train` is the way in; the parts are public for the benches."""
>>>>>>> shell

    def __init__(
        self,
        model: Any,
<<<<<<< HEAD
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
=======
        spec: TrainingSpec,
        *,
        callbacks: Callbacks,
        workdir: Path,
        vocabulary: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.spec, self.callbacks, self.workdir = model, spec, callbacks, workdir
        self.vocabulary, self.clock = vocabulary, clock
        self.device = model.get_input_embeddings().weight.device
        self.bfloat16 = use_bfloat16(spec, self.device)
        self.parameters = select_trainable(model, spec.trainable)
        self.split: SplitHead = split_head(model)
        decay = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": decay, "weight_decay": spec.schedule.weight_decay},
>>>>>>> shell
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]],
<<<<<<< HEAD
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
=======
            lr=spec.schedule.learning_rate,
            betas=spec.schedule.betas,
        )
        self.spec_hash = fingerprint(spec)
        self.progress = _Progress()

    def forward(self, batch: StudentBatch, denominator: int) -> LossSums:
        """Return the loss of one micro-batch over the step's denominator, with its sums."""
        batch = _to(batch, self.device)
        context: AbstractContextManager[Any] = (
            torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
        )
        with context:
            hidden = self.split.hidden(batch.input_ids, batch.attention_mask)
        hidden = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
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
        )

    def step(self, batches: StepBatches) -> dict[str, float]:
        """Take one optimiser step and return its metrics. Errors: NonFiniteLossError."""
        started = self.clock()
        rate = learning_rate(self.spec.schedule, self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        totals = _Totals()
        for micro in batches.micro:
            sums = self.forward(micro, batches.denominator)
            sums.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            totals.add(sums)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.schedule.max_grad_norm)
        )
        if not (math.isfinite(totals.loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"Step {self.progress.step + 1}: the loss is {totals.loss:g} and the gradient norm "
                f"{norm:g}. Lower the learning rate (now {rate:g}), or train in float32."
            )
        self.optimizer.step()
        seconds = self.clock() - started
        read = sum(int(m.attention_mask.sum()) for m in batches.micro)
        self.progress.step += 1
        self.progress.tokens += read
        self.progress.seconds += seconds
        return {
            "train/loss": totals.loss,
            **totals.parts("train/"),
            "optim/grad_norm": norm,
            "optim/learning_rate": rate,
            "perf/tokens_per_second": read / max(seconds, 1e-9),
            "data/tokens": float(self.progress.tokens),
        }

    @torch.no_grad()
    def validate(self, batches: Iterable[StudentBatch]) -> dict[str, float]:
        """Return the objective's mean per target token on held-out batches, and its parts."""
        self.model.eval()
        totals, weight = _Totals(), 0
        for batch in batches:
            sums = self.forward(batch, 1)
            totals.add(sums)
            weight += batch.target_tokens
        self.model.train()
        values = {"validation/loss": totals.loss / max(weight, 1)}
        if totals.kd_tokens:
            values["validation/kl"] = totals.kd / totals.kd_tokens
        return values

    def save(self, *, best: bool, value: float | None, cursor: int) -> None:
        """Write a snapshot, announce it, and drop those no longer needed."""
        state = SnapshotState(
            step=self.progress.step,
            cursor=cursor,
            spec_hash=self.spec_hash,
            scheduler={"name": "cosine", "last_step": self.progress.step},
            progress=asdict(self.progress),
        )
        folder, digest = save_snapshot(
            self.workdir / "snapshots", self.model, self.optimizer, state
        )
        self.callbacks.snapshot(state.step, folder, digest, best=best, value=value)
        prune_snapshots(self.workdir / "snapshots", self.progress.best_step)

    def resume(self, candidates: Sequence[Path]) -> int:
        """Restore the newest sound snapshot and return the data cursor. Errors: SnapshotError."""
        state, _ = load_snapshot(
            candidates,
            self.model,
            self.optimizer,
            spec_hash=self.spec_hash,
            callbacks=self.callbacks,
        )
        self.progress = _Progress(**state.progress)
        return state.cursor


def train(  # noqa: PLR0913 - a core's entry: inputs, spec, where things go
    model: Any,
    batches: Batches,
    spec: TrainingSpec,
    *,
    callbacks: Callbacks,
    workdir: Path,
    tokenizer: Any,
    resume_from: Path | Sequence[Path] | None = None,
    validation: Sequence[StudentBatch] = (),
    vocabulary: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train `model` in place and leave the best checkpoint in workdir/checkpoint.

    resume_from: a snapshot folder, the folder that holds them (newest first, falling back), or the
    candidates in order. Resuming on a CPU equals never having stopped, bit for bit. When
    `callbacks.should_stop()` the step in hand ends, a snapshot is written, and no checkpoint is.
    vocabulary: rows of the head that may get mass. Errors: NonFiniteLossError, SnapshotError.
    """
    _seed(spec.seed)
    trainer = Trainer(
        model, spec, callbacks=callbacks, workdir=workdir, vocabulary=vocabulary, clock=clock
    )
    if resume_from is not None:
        callbacks.phase("resume")
        batches.cursor = trainer.resume(_candidates(resume_from))
    callbacks.phase("train")
    model.train()
    stopped = _loop(trainer, batches, validation)
    model.eval()
    progress = trainer.progress
    folder = None if stopped else _finish(trainer, tokenizer)
    return TrainResult(
        steps=progress.step,
        best_step=progress.best_step,
        best_value=progress.best_value,
        folder=folder,
        tokens=progress.tokens,
        seconds=progress.seconds,
        stopped_early=stopped,
    )


def _loop(trainer: Trainer, batches: Batches, validation: Sequence[StudentBatch]) -> bool:
    """Run the remaining steps; return whether a stop was asked for before the last one."""
    schedule, callbacks, progress = trainer.spec.schedule, trainer.callbacks, trainer.progress
    for step_batches in batches:
        values = trainer.step(step_batches)
        last = progress.step >= schedule.steps
        best = False
        if validation and (last or progress.step % schedule.validate_every == 0):
            values |= trainer.validate(validation)
            loss = values["validation/loss"]
            best = progress.best_value is None or loss < progress.best_value
            if best:
                progress.best_step, progress.best_value = progress.step, loss
        callbacks.metrics(progress.step, values)
        callbacks.progress(progress.step, schedule.steps, "steps")
        stop = callbacks.should_stop()
        if best or last or stop or progress.step % schedule.snapshot_every == 0:
            trainer.save(
                best=best, value=values.get("validation/loss"), cursor=step_batches.step + 1
            )
        if stop and not last:
            return True
    return False


def _finish(trainer: Trainer, tokenizer: Any) -> Path:
    """Write the checkpoint: the best snapshot's weights where that is not the last step."""
    trainer.callbacks.phase("save")
    best = trainer.progress.best_step
    if best is not None and best != trainer.progress.step:
        folder = snapshot_folder(trainer.workdir / "snapshots", best)
        load_weights(trainer.model, folder / MODEL)
        trainer.callbacks.log(f"The checkpoint is step {best}, the lowest validation loss.")
    folder = trainer.workdir / "checkpoint"
    save_checkpoint(trainer.model, tokenizer, folder)
    return folder


def use_bfloat16(spec: TrainingSpec, device: torch.device) -> bool:
    """Return whether forward passes run in bf16 autocast; weights and optimiser stay fp32.

    `auto` is bf16 on CUDA only: on the CPUs measured it won 3 % of a step's time, which is not
    worth the lost bits.
    """
    if spec.precision == "auto":
        return device.type == "cuda"
    return spec.precision == "bfloat16"


class _Totals:
    """Sums over the micro-batches of a step or a validation."""
>>>>>>> shell

    def __init__(self) -> None:
        self.loss = self.kd = self.ce = 0.0
        self.kd_tokens = self.ce_tokens = 0

    def add(self, sums: LossSums) -> None:
        self.loss += float(sums.loss.detach())
        self.kd += float(sums.kd_sum)
        self.ce += float(sums.ce_sum)
        self.kd_tokens += sums.kd_tokens
        self.ce_tokens += sums.ce_tokens

<<<<<<< HEAD
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
=======
    def parts(self, prefix: str) -> dict[str, float]:
        values = {}
        if self.kd_tokens:
            values[f"{prefix}kd_loss"] = self.kd / self.kd_tokens
        if self.ce_tokens:
            values[f"{prefix}ce_loss"] = self.ce / self.ce_tokens
        return values


def _candidates(resume_from: Path | Sequence[Path]) -> list[Path]:
    if not isinstance(resume_from, Path):
        return list(resume_from)
    if (resume_from / "manifest.json").exists() or resume_from.name.startswith("step-"):
        older = [f for f in snapshot_folders(resume_from.parent) if f.name < resume_from.name]
        return [resume_from, *older]
    return snapshot_folders(resume_from)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what libraries use
    torch.manual_seed(seed)


def _to(batch: StudentBatch, device: torch.device) -> StudentBatch:
    if device.type == "cpu":
        return batch
    teacher = batch.teacher and SparseTargets(
        ids=batch.teacher.ids.to(device),
        log_w=batch.teacher.log_w.to(device),
        log_r=batch.teacher.log_r.to(device),
        temperature=batch.teacher.temperature,
    )
    return StudentBatch(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        positions=batch.positions.to(device),
        labels=batch.labels.to(device),
        alpha=batch.alpha.to(device),
        teacher=teacher,
    )
>>>>>>> shell
