"""Evaluate a checkpoint on a split; sums per cluster become rows, examples a Parquet blob."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.errors import Conflict
from app.evaluations import service
from app.jobs.lease import Claim
from app.runs.models import Run
from app.settings import Settings
from app.specs.evaluation import EvaluationReport
from app.specs.jobs import EvaluateJob, JobKind
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.evaluation.run import run_evaluation
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.served import server_of
from workers.tasks.sets import NoParts, checkpoint_folder, read_conversations, version_path


class EvaluateInputs(Inputs):
    job: EvaluateJob
    checkpoint: str
    teacher: str | None
    conversations: str
    served: str = ""
    """URL of the teacher's server, where it has no weights here."""


class EvaluateTask(NoParts):
    kind = JobKind.EVALUATE
    inputs: type[Inputs] = EvaluateInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = EvaluateJob.model_validate(spec)
        checkpoint_id = job.checkpoint_id
        if checkpoint_id is None:
            run = session.get(Run, job.run_id)
            checkpoint_id = run.checkpoint_id if run else None
        if checkpoint_id is None:
            raise Conflict("The run has no checkpoint to evaluate: it must be trained first.")
        teacher, served = None, ""
        if job.teacher_id is not None:
            server, folder, _ = server_of(session, job.teacher_id, settings)
            teacher, served = (folder, "") if server is None else (None, server.base_url)
        return EvaluateInputs(
            job=job,
            checkpoint=checkpoint_folder(session, checkpoint_id, settings)[0],
            teacher=teacher,
            served=served,
            conversations=version_path(session, job.dataset_version_id, settings),
        )

    def run(self, inputs: EvaluateInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("load")
        spec, folder = inputs.job.evaluation, Path(inputs.checkpoint)
        if inputs.served:
            context.callbacks.log(
                f"KL and agreement are left out: they need the teacher's whole distribution, and "
                f"{inputs.served} gives its likeliest tokens only.",
                "warning",
            )
        conversations = read_conversations(inputs.conversations, (spec.split,))
        device = compute_device()
        model = load_model(folder).to(device)
        teacher = model if inputs.teacher == inputs.checkpoint else None
        if inputs.teacher and teacher is None:
            teacher = load_model(Path(inputs.teacher)).to(device)
        out = context.workdir / "examples.parquet"
        context.callbacks.phase("evaluate")
        report = run_evaluation(
            model,
            load_tokenizer(folder),
            conversations[: spec.max_conversations],
            teacher=teacher,
            render=inputs.job.render,
            spec=spec,
            out_file=out,
            callbacks=context.callbacks,
        )
        return {"examples": str(out.absolute()), "report": report.model_dump(mode="json")}

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        report = EvaluationReport.model_validate(result["report"])
        evaluation_id = held.spec["evaluation_id"]
        service.done(session, evaluation_id, report, Path(result["examples"]), settings)


TASKS: dict[JobKind, Task] = {JobKind.EVALUATE: EvaluateTask()}
