"""A training of a tiny model that processes share; `python -m tests.support.rank_task train`."""

import os
import signal
import sys
from typing import Any

import torch

from app.specs.training import Objective, Schedule, TrainingSpec
from tests.workers.distill import tiny
from workers.distill import trainer
from workers.distill.batches import BatchSource, Collator
from workers.distill.checkpointing import snapshot_folders
from workers.distill.losses.fused import LossSums
from workers.distill.ranks import Ranks
from workers.distill.selection import Selection, Validation
from workers.distill.stepping import Stepper
from workers.distill.trainer import TrainResult, train
from workers.distill.values import StudentBatch
from workers.job.ranks import run_rank, sharing
from workers.job.task import BodyContext, Inputs


class RankInputs(Inputs):
    ranks: int = 2
    micro: int = 2
    packing: bool = False
    small: bool = False
    """The further ranks have memory for one conversation at a time."""
    dies: bool = False
    """The last rank is killed after its third step."""


def spec_of(inputs: RankInputs) -> TrainingSpec:
    schedule = Schedule(
        steps=6,
        batch_size=7,
        micro_batch_size=inputs.micro,
        snapshot_every=2,
        validate_every=2,
        warmup_steps=2,
        packing=inputs.packing,
        ranks=inputs.ranks,
    )
    return TrainingSpec(objective=Objective(alpha=0.6), schedule=schedule)


def trained(inputs: RankInputs, context: BodyContext, ranks: Ranks) -> tuple[TrainResult, Any]:
    torch.manual_seed(0)
    items = tiny.rendered(tiny.tickets(24))
    rows, spec = tiny.LiveRows(tiny.llama(hidden=48, seed=9), items), spec_of(inputs)
    collate = Collator(rows, spec.objective)
    held_out = [collate(items[start : start + 4]) for start in range(0, 12, 4)]
    model = tiny.llama()
    left = snapshot_folders(context.workdir / "snapshots")
    result = train(
        model,
        BatchSource(items, rows, spec.objective, spec.schedule, spec.seed),
        spec,
        callbacks=context.callbacks,
        workdir=context.workdir,
        tokenizer=tiny.tokenizer(),
        resume_from=left or None,
        validation=Validation(held_out, Selection("validation/agreement", higher=True)),
        ranks=ranks,
    )
    return result, model


class RankTask:
    """Not a whole task: what of one a shared body needs."""

    kind = "train"
    inputs = RankInputs

    def run(self, inputs: RankInputs, context: BodyContext) -> tuple[TrainResult, Any]:
        with sharing(self.kind, inputs.ranks, inputs, context, "tests.support.rank_task") as ranks:
            return trained(inputs, context, ranks)

    def share(self, inputs: RankInputs, context: BodyContext, ranks: Ranks) -> None:
        if inputs.dies and ranks.rank == inputs.ranks - 1:
            context.callbacks.progress = _dying  # type: ignore[method-assign]
        if inputs.small:
            trainer.Stepper = _Small  # type: ignore[misc] # of this process alone
        trained(inputs, context, ranks)


class _Small(Stepper):
    def forward(self, batch: StudentBatch, denominator: int) -> LossSums:
        if torch.is_grad_enabled() and len(batch.input_ids) > 1:
            raise MemoryError
        return super().forward(batch, denominator)


def _dying(done: int, total: int, unit: str) -> None:
    del total, unit
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run_rank(RankTask()))  # type: ignore[arg-type] # the parts that are used
