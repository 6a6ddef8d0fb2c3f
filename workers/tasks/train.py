"""Train a run's student; the result becomes a checkpoint of the project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.runs import service as runs
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.jobs import JobKind, TrainJob
from app.teacher_cache import service as cache
from workers.distill.batches import BatchSource, Collator
from workers.distill.checkpointing import MODEL, recorded_snapshots, snapshot_folder
from workers.distill.checkpoints import (
    compute_device,
    load_model,
    load_weights,
    read_card,
    save_checkpoint,
)
from workers.distill.ranks import Ranks
from workers.distill.rendering import Renderer
from workers.distill.teacher_shards import ShardLookup
from workers.distill.tokenizers import load_tokenizer, vocabulary_size
from workers.distill.trainer import TrainResult, train
from workers.job.ranks import sharing
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.caching import give_up, giving_up_damaged
from workers.tasks.left_out import counted, tell
from workers.tasks.sets import (
    checkpoint_folder,
    read_conversations,
    tokenizer_folder,
    version_path,
)
from workers.tasks.teaching import Pair, live_teacher, pair_of, require_same_ids
from workers.tasks.validating import require_context, validation_of

ORIGIN = ("step", "best", "by", "value", "of", "ended", "patience", "judged_by")
"""What a trained checkpoint tells of where it comes from."""


class TrainInputs(Inputs):
    job: TrainJob
    student: str
    conversations: str
    shards: tuple[str, ...]
    space: str | None
    """Address of the cache they belong to, where it is read."""
    pair: Pair | None
    """Given where the objective has a teacher term."""
    licence: str | None
    """The student's: what is trained from it stays under it."""


class TrainTask:
    kind = JobKind.TRAIN
    inputs: type[Inputs] = TrainInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = TrainJob.model_validate(spec)
        student, student_card = checkpoint_folder(session, job.run.student_id, settings)
        shards: list[Path] = []
        space: str | None = None
        pair: Pair | None = None
        objective = job.run.training.objective
        if objective.needs_teacher and job.run.teacher_id is not None:
            reads = tokenizer_folder if objective.reads_cache else checkpoint_folder
            teacher = reads(session, job.run.teacher_id, settings)
            pair = pair_of(teacher, (student, student_card))
            if objective.reads_cache:
                space = cache.space_of(teacher[1], job.run.capture).address
                shards = cache.shard_paths(session, space, settings)
        return TrainInputs(
            job=job,
            student=student,
            conversations=version_path(session, job.run.dataset_version_id, settings),
            shards=tuple(str(path) for path in shards),
            space=space,
            pair=pair,
            licence=student_card.licence,
            cards=job.run.training.schedule.ranks,
        )

    def run(self, inputs: TrainInputs, context: BodyContext) -> dict[str, Any]:
        wanted = inputs.job.run.training.schedule.ranks
        with (
            giving_up_damaged(inputs.space, context.callbacks),
            sharing(self.kind, wanted, inputs, context) as ranks,
        ):
            return self._train(inputs, context, ranks)

    def share(self, inputs: TrainInputs, context: BodyContext, ranks: Ranks) -> None:
        self._train(inputs, context, ranks)

    def _train(self, inputs: TrainInputs, context: BodyContext, ranks: Ranks) -> dict[str, Any]:
        calls, spec = context.callbacks, inputs.job.run.training
        calls.phase("load")
        folder = Path(inputs.student)
        tokenizer, model = load_tokenizer(folder), load_model(folder).to(compute_device())
        read = {s: read_conversations(inputs.conversations, (s,)) for s in ("train", "validation")}
        if inputs.pair is not None:
            require_same_ids(inputs.pair, read["train"], calls)
        found = Renderer(tokenizer, spec.render).render_all(read["train"])
        tell(found, calls)
        training = found.rendered
        require_context(model, training)
        lookup = ShardLookup([Path(p) for p in inputs.shards], inputs.job.run.capture.temperatures)
        with lookup:
            batches = BatchSource(
                training[: spec.max_train_conversations],
                lookup,
                spec.objective,
                spec.schedule,
                spec.seed,
            )
            calls.log(f"Trained on {counted(len(batches), 'conversation')}.")
            if batches.missing_entries:
                gap = f"{batches.missing_entries} conversations have no teacher rows"
                calls.log(gap, "warning")
            collate = Collator(lookup, spec.objective)
            run, held_out = inputs.job.run, read["validation"]
            calls.phase("train")
            result = train(
                model,
                batches,
                spec,
                callbacks=calls,
                workdir=context.workdir,
                tokenizer=tokenizer,
                resume_from=recorded_snapshots(context.snapshots, calls),
                validation=validation_of(run, held_out, tokenizer, collate, calls),
                vocabulary=vocabulary_size(tokenizer),
                live=live_teacher(
                    inputs.pair, spec.objective, vocabulary_size(tokenizer), calls, training
                ),
                ranks=ranks,
            )
        if not ranks.first:
            return {}
        made = result.folder
        if made is None:  # stopped: what it had learned is kept, if "keep" was asked for
            made, best = context.workdir / "checkpoint", result.best_step
            if best is not None and best != result.steps:
                load_weights(model, snapshot_folder(context.workdir / "snapshots", best) / MODEL)
                calls.log(
                    f"Stopped after step {result.steps}; kept is step {best}, the best so far."
                )
            save_checkpoint(model, tokenizer, made)
        card = read_card(made, licence=inputs.licence)
        values = {name: getattr(result, name) for name in ("steps", "tokens", "seconds", "lasted")}
        values |= _kept(result)
        return {"folder": str(made.absolute()), "card": card.model_dump(mode="json"), **values}

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None:
        del held, settings
        give_up(session, payload)

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        card = CheckpointCard.model_validate(result["card"])
        step = {name: result[name] for name in ORIGIN if name in result} or {
            "step": result["steps"],
            "best": False,
        }
        runs.trained(session, held.spec["run_id"], card, Path(result["folder"]), settings, step)


def _kept(result: TrainResult) -> dict[str, Any]:
    """Return of which step the checkpoint is, what says so, and why the training ended."""
    best = result.best_step
    kept: dict[str, Any] = {"step": best or result.steps, "best": best is not None}
    if best is not None:
        kept |= {"by": result.selection.metric, "value": result.best_value}
        kept |= {"of": result.best_count}
    if result.ending == "patience":
        kept |= {"ended": result.steps, "patience": result.selection.patience}
        kept |= {"judged_by": result.selection.metric}
    return kept


TASKS: dict[JobKind, Task] = {JobKind.TRAIN: TrainTask()}
