"""Show what a training would learn, by the student's own tokenizer and template."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.jobs import JobKind, PreviewJob
from workers.distill.preview import preview_of
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.sets import NoParts, checkpoint_folder, read_conversations, version_path


class PreviewInputs(Inputs):
    job: PreviewJob
    checkpoint: str
    conversations: str


class PreviewTask(NoParts):
    kind = JobKind.PREVIEW
    inputs: type[Inputs] = PreviewInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = PreviewJob.model_validate(spec)
        folder, _ = checkpoint_folder(session, job.checkpoint_id, settings)
        path = version_path(session, job.dataset_version_id, settings)
        return PreviewInputs(job=job, checkpoint=folder, conversations=path)

    def run(self, inputs: PreviewInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("render")
        renderer = Renderer(load_tokenizer(Path(inputs.checkpoint)), inputs.job.render)
        first = islice(read_conversations(inputs.conversations, ("train",)), inputs.job.look_at)
        found = preview_of(renderer, first, context.callbacks.should_stop)
        return found.model_dump(mode="json")

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        del session, held, result, settings  # pages read it in the job


TASKS: dict[JobKind, Task] = {JobKind.PREVIEW: PreviewTask()}
