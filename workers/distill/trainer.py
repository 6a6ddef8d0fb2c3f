"""The one training loop: distillation and fine-tuning (alpha 0) are the same steps."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from app.specs.fingerprint import fingerprint
from app.specs.training import TrainingSpec
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
from workers.distill.generate import GenerationStopped
from workers.distill.memory import (
    halved,
)
from workers.distill.optimizing import learning_rate
from workers.distill.ranks import ALONE, Ranks
from workers.distill.selection import AGREEMENT, Selection, Validation
from workers.distill.stepping import NoMemory, Stepper
from workers.distill.teachers import LiveTeacher
from workers.distill.values import StudentBatch

Ending = Literal["steps", "patience", "stopped"]
"""All steps were taken, nothing improved any more, or somebody asked to stop."""
_FREE_OF_RANKS = {"schedule": {"ranks": True}}
"""How many processes share the steps changes nothing: another number may resume."""


class Batches(Protocol):
    """Steps to train on; `cursor` is the next one, so that resuming needs a number only."""

    cursor: int
    micro_size: int | None
    share: tuple[int, int]

    def __iter__(self) -> Iterator[StepBatches]: ...

    def step(self, number: int) -> StepBatches: ...

    def longest(self, count: int) -> StudentBatch: ...


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left.

    `folder` is a checkpoint: the best weights by `selection`, or the last where nothing was
    validated; None after a stop (then only snapshots lie in the workdir), and on all ranks but one.
    """

    steps: int
    best_step: int | None
    best_value: float | None
    best_count: int | None
    """Answers that it rests on, where it rests on answers."""
    folder: Path | None
    tokens: int
    seconds: float
    """Of the steps alone."""
    lasted: float
    """With validation, the reading of batches and all snapshots but the last."""
    ending: Ending
    selection: Selection

    @property
    def stopped_early(self) -> bool:
        return self.ending == "stopped"


@dataclass(slots=True)
class _Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    lasted: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_count: int | None = None
    """Answers that the best value rests on, where it rests on answers."""
    best_loss: float | None = None
    """Validation loss of the best step: the lower one is better where the values are alike."""
    mark: float | None = None
    """The last value that was better than the one before it by more than `min_delta`."""
    waited: int = 0
    """Validations since then."""
    owed: bool = False
    """A stop cut the last validation short."""
    micro_size: int | None = None


class Trainer:
    """State of one training. `train` is the way in; the parts are public for the benches."""

    def __init__(  # noqa: PLR0913 - as `train`
        self,
        model: Any,
        spec: TrainingSpec,
        *,
        callbacks: Callbacks,
        workdir: Path,
        vocabulary: int | None = None,
        validation: Validation | None = None,
        live: LiveTeacher | None = None,
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.spec, self.callbacks, self.workdir = model, spec, callbacks, workdir
        self.clock, self.ranks = clock, ranks
        self.validation = validation or Validation()
        self.stepper = Stepper(model, spec, vocabulary=vocabulary, live=live, ranks=ranks)
        self.optimizer = self.stepper.optimizer
        self.spec_hash = fingerprint(spec.model_dump(mode="json", exclude=_FREE_OF_RANKS))
        self.progress = _Progress()

    def fit(self, batches: Batches, step_batches: StepBatches) -> dict[str, float]:
        """Take a step as `step` does, in smaller micro-batches where memory does not do.

        Errors: NonFiniteLossError, OutOfMemoryError where not even one conversation fits.
        """
        while True:
            try:
                return self.step(step_batches)
            except NoMemory:
                number = self.progress.step + 1
                size = halved(batches.micro_size or self.spec.schedule.batch_size, number)
            self.callbacks.log(
                f"Step {number}: memory ran out, so it is repeated in micro-batches of {size}.",
                "warning",
            )
            self._take_size(batches, size)
            if self.stepper.device.type == "cuda":
                torch.cuda.empty_cache()
            step_batches = batches.step(step_batches.step)

    def step(self, batches: StepBatches) -> dict[str, float]:
        """Take one optimiser step and return its metrics. Errors: NonFiniteLossError."""
        started = self.clock()
        rate = learning_rate(self.spec.schedule, self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals = self.stepper.backward(batches)
        norm = self.stepper.clipped_norm()
        if not (math.isfinite(totals.loss) and math.isfinite(norm)):
            raise NonFiniteLossError(self._not_finite(totals.loss, norm, rate))
        self.optimizer.step()
        seconds = self.clock() - started
        self.progress.step += 1
        self.progress.tokens += totals.read
        self.progress.seconds += seconds
        return {
            "train/loss": totals.loss,
            **totals.parts("train/"),
            "optim/grad_norm": norm,
            "optim/learning_rate": rate,
            "perf/tokens_per_second": totals.read / max(seconds, 1e-9),
            "data/tokens": float(self.progress.tokens),
        }

    def _not_finite(self, loss: float, norm: float, rate: float) -> str:
        number = self.progress.step + 1
        words = f"Step {number}: the loss is {loss:g} and the gradient norm {norm:g}. "
        if not all(bool(torch.isfinite(p).all()) for p in self.stepper.parameters):
            words += "The weights hold numbers that are not finite before this step's update"
            words += ": the checkpoint is damaged. Register it again. " if number == 1 else ". "
        elif self.stepper.bfloat16:
            words += "Likely bfloat16 ran out of range, or the steps are too long. "
        else:
            words += "Likely the steps have become too long. "
        words += self._mend(rate)
        kept = snapshot_folders(self.workdir / "snapshots")
        if kept:
            words += f"The snapshot of step {int(kept[0].name[5:])} is kept; "
            words += "tried again from it with the same settings, it will come to the same."
        return words.strip()

    def _mend(self, rate: float) -> str:
        other = "train in float32" if self.stepper.bfloat16 else "warm up longer"
        return f"Lower the learning rate (now {rate:g}), or {other}. "

    def require_finite(self, step: int) -> None:
        """Refuse weights that no later step has tried. Errors: NonFiniteLossError."""
        if all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return
        schedule = self.spec.schedule
        words = f"Step {step}: its update left weights that are not finite, so none are kept. "
        words += self._mend(learning_rate(schedule, step - 1))
        if schedule.weight_decay > 0:
            words += f"Lower the weight decay (now {schedule.weight_decay:g}). "
        raise NonFiniteLossError(words.strip())

    def choose_micro_size(self, batches: Batches) -> None:
        """Let a memory probe choose the micro-batch where neither spec nor snapshot names it.

        Errors: OutOfMemoryError where not even one conversation fits.
        """
        if batches.micro_size is None:
            size, sentence = self.stepper.fitting(batches.longest)
            self.callbacks.log(sentence)
            self._take_size(batches, size)

    def _take_size(self, batches: Batches, size: int) -> None:
        batches.micro_size = self.progress.micro_size = size

    def validate(self) -> tuple[dict[str, float], int | None]:
        """Return what is measured on held-out batches, and how many answers were scored, if any.

        Sets `progress.owed` where a stop cut the answers short.
        """
        self.model.eval()
        by = self.validation
        values = self.stepper.measure(by.batches, agreement=by.selection.metric == AGREEMENT)
        count = self._answer(values)
        self.model.train()
        return values, count

    def _answer(self, values: dict[str, float]) -> int | None:
        """Add the answers' score to the values; return how many answers have one."""
        answers, cut = self.validation.answers, False
        if answers is None or self.validation.selection.metric != answers.metric:
            self.progress.owed = False
            return None
        total, count = 0.0, 0
        try:
            share = (self.ranks.rank, self.ranks.count)
            total, count = answers.sums(self.model, self.callbacks, share)
        except GenerationStopped:
            cut = True
        self.progress.owed = self.ranks.any(cut)
        total, scored = self.ranks.sums([total, float(count)])
        if scored and not self.progress.owed:
            values[answers.metric] = total / scored
        return int(scored)

    def judge(self) -> tuple[dict[str, float], bool]:
        """Validate and return the values and whether these weights are the best so far."""
        values, count = self.validate()
        progress = self.progress
        if progress.owed:
            return values, False
        value = self.validation.measured(values, self.callbacks)
        by, loss = self.validation.selection, values["validation/loss"]
        progress.waited += 1
        if by.better(value, progress.mark, by.min_delta):
            progress.mark, progress.waited = value, 0
        if by.nothing_yet(value):
            progress.waited = 0
        best = by.better(value, progress.best_value)
        if value == progress.best_value and progress.best_loss is not None:
            best = loss < progress.best_loss
        if best:
            progress.best_step, progress.best_value = progress.step, value
            progress.best_count, progress.best_loss = count, loss
        return values, best

    @property
    def exhausted(self) -> bool:
        """Whether patience with the deciding metric has come to its end."""
        patience = self.validation.selection.patience
        return patience is not None and self.progress.waited >= patience

    def save(self, *, best: bool, value: float | None, cursor: int) -> None:
        """Write a snapshot, announce it, and drop those no longer needed; only the first rank."""
        if not self.ranks.first:
            return
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
            if folder != target and self.ranks.first:
                link_snapshot(folder, target)
            return
        self.callbacks.log(
            f"The best snapshot so far, step {step}, is gone or damaged: the best of the steps "
            "from here on will be kept.",
            "warning",
        )
        self.progress.best_step = self.progress.best_value = None
        self.progress.best_count = self.progress.best_loss = None


def train(  # noqa: PLR0913 - a core's entry: inputs, spec, where things go
    model: Any,
    batches: Batches,
    spec: TrainingSpec,
    *,
    callbacks: Callbacks,
    workdir: Path,
    tokenizer: Any,
    resume_from: Path | Sequence[Path] | None = None,
    validation: Validation | None = None,
    vocabulary: int | None = None,
    live: LiveTeacher | None = None,
    ranks: Ranks = ALONE,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train `model` in place and leave the best checkpoint in workdir/checkpoint.

    resume_from: a snapshot folder, the folder that holds them (newest first, falling back), or the
    candidates in order. Resuming on a CPU equals never having stopped, bit for bit. When
    `callbacks.should_stop()` the step in hand ends, a snapshot is written, and no checkpoint is.
    vocabulary: rows of the head that may get mass; live: the teacher of rows that are not stored;
    ranks: this process among those that share each
    step, of which the first alone writes. Errors: NonFiniteLossError, SnapshotError,
    OutOfMemoryError, PackingError, DiskFullError.
    """
    _seed(spec.seed)
    batches.share = (ranks.rank, ranks.count)
    trainer = Trainer(
        model,
        spec,
        callbacks=callbacks,
        workdir=workdir,
        vocabulary=vocabulary,
        validation=validation,
        live=live,
        ranks=ranks,
        clock=clock,
    )
    if resume_from is not None:
        callbacks.phase("resume")
        batches.cursor = trainer.resume(_candidates(resume_from))
        batches.micro_size = trainer.progress.micro_size or batches.micro_size
    if not ranks.first:  # dropout of one rank must not be that of another
        torch.manual_seed(spec.seed + 1_000_003 * ranks.rank + trainer.progress.step)
    callbacks.phase("train")
    model.train()
    trainer.choose_micro_size(batches)
    ending = _loop(trainer, batches)
    model.eval()
    progress = trainer.progress
    folder = None if ending == "stopped" else _finish(trainer, tokenizer, ending)
    return TrainResult(
        steps=progress.step,
        best_step=progress.best_step,
        best_value=progress.best_value,
        best_count=progress.best_count,
        folder=folder,
        tokens=progress.tokens,
        seconds=progress.seconds,
        lasted=progress.lasted,
        ending=ending,
        selection=trainer.validation.selection,
    )


def _loop(trainer: Trainer, batches: Batches) -> Ending:
    """Run the remaining steps; return why it ended."""
    schedule, callbacks, progress = trainer.spec.schedule, trainer.callbacks, trainer.progress
    validated, judge = bool(trainer.validation.batches), f"validation/{schedule.select_by}"
    if progress.owed:
        _settle(trainer, batches.cursor)
    before = trainer.clock()
    for step_batches in () if trainer.exhausted or progress.owed else batches:
        values = trainer.fit(batches, step_batches)
        last = progress.step >= schedule.steps
        best = False
        if validated and (last or progress.step % schedule.validate_every == 0):
            found, best = trainer.judge()
            values |= found
        last = last or trainer.exhausted
        callbacks.metrics(progress.step, values)
        callbacks.progress(progress.step, schedule.steps, "steps")
        stop = trainer.ranks.any(callbacks.should_stop()) or progress.owed
        moment = trainer.clock()
        progress.lasted += moment - before
        before = moment
        if best or last or stop or progress.step % schedule.snapshot_every == 0:
            trainer.save(best=best, value=values.get(judge), cursor=step_batches.step + 1)
        if stop and (not last or progress.owed):
            return "stopped"
        if trainer.exhausted:
            break
    if progress.owed:
        return "stopped"
    return "patience" if progress.step < schedule.steps else "steps"


def _settle(trainer: Trainer, cursor: int) -> None:
    """Make up for the validation that a stop cut short."""
    values, best = trainer.judge()
    trainer.callbacks.metrics(trainer.progress.step, values)
    if best or trainer.exhausted:
        value = values.get(f"validation/{trainer.spec.schedule.select_by}")
        trainer.save(best=best, value=value, cursor=cursor)


def _finish(trainer: Trainer, tokenizer: Any, ending: Ending) -> Path | None:
    """Write the checkpoint: the best snapshot's weights where that is not the last step."""
    if not trainer.ranks.first:
        return None
    progress, by, log = trainer.progress, trainer.validation.selection, trainer.callbacks.log
    trainer.callbacks.phase("save")
    if ending == "patience":
        log(
            f"Ended after step {progress.step} of {trainer.spec.schedule.steps}: the {by.label} "
            f"did not improve over {progress.waited} validations."
        )
    best = progress.best_step
    if best is not None:
        if best != progress.step:
            folder = snapshot_folder(trainer.workdir / "snapshots", best)
            load_weights(trainer.model, folder / MODEL)
        log(f"The checkpoint is step {best}: {by.words(progress.best_value, progress.best_count)}.")
    trainer.require_finite(best or progress.step)
    folder = trainer.workdir / "checkpoint"
    save_checkpoint(trainer.model, tokenizer, folder)
    return folder


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
