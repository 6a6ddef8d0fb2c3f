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
    link_snapshot,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
    snapshot_folder,
    snapshot_folders,
    verify_snapshot,
)
from workers.distill.checkpoints import load_weights, save_checkpoint
from workers.distill.errors import NonFiniteLossError, SnapshotError
from workers.distill.heads import SplitHead, split_head
from workers.distill.losses.choice import divergence_for
from workers.distill.losses.fused import LossSums, fused_loss
from workers.distill.values import SparseTargets, StudentBatch


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
    """Of the steps alone."""
    lasted: float
    """With validation, the reading of batches and all snapshots but the last."""
    stopped_early: bool


@dataclass(slots=True)
class _Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    lasted: float = 0.0
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

    def __init__(
        self,
        model: Any,
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
        self.divergence = divergence_for(spec.objective)
        self.parameters = select_trainable(model, spec.trainable)
        self.split: SplitHead = split_head(model)
        decay = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": decay, "weight_decay": spec.schedule.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]],
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
            divergence=self.divergence,
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
        self._adopt_best(candidates)
        return state.cursor

    def _adopt_best(self, candidates: Sequence[Path]) -> None:
        """Take the best snapshot so far along: another attempt may have written it elsewhere."""
        step = self.progress.best_step
        if step is None:
            return
        target = snapshot_folder(self.workdir / "snapshots", step)
        found = [target, *(folder for folder in candidates if folder.name == target.name)]
        for folder in found:
            try:
                verify_snapshot(folder)
            except SnapshotError:
                continue
            if folder != target:
                link_snapshot(folder, target)
            return
        self.callbacks.log(
            f"The best snapshot so far, step {step}, is gone or damaged: the best of the steps "
            "from here on will be kept.",
            "warning",
        )
        self.progress.best_step = self.progress.best_value = None


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
        lasted=progress.lasted,
        stopped_early=stopped,
    )


def _loop(trainer: Trainer, batches: Batches, validation: Sequence[StudentBatch]) -> bool:
    """Run the remaining steps; return whether a stop was asked for before the last one."""
    schedule, callbacks, progress = trainer.spec.schedule, trainer.callbacks, trainer.progress
    before = trainer.clock()
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
        moment = trainer.clock()
        progress.lasted += moment - before
        before = moment
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

    def __init__(self) -> None:
        self.loss = self.kd = self.ce = 0.0
        self.kd_tokens = self.ce_tokens = 0

    def add(self, sums: LossSums) -> None:
        self.loss += float(sums.loss.detach())
        self.kd += float(sums.kd_sum)
        self.ce += float(sums.ce_sum)
        self.kd_tokens += sums.kd_tokens
        self.ce_tokens += sums.ce_tokens

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
