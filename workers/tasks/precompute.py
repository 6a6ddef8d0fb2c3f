"""Fill the teacher cache for a dataset version; each shard is kept as soon as it is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.jobs import JobKind, PrecomputeJob
from app.specs.teacher import CacheReport, CacheSpace
from app.teacher_cache import service
from workers.distill.capture import capture, check_faithfulness
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.errors import UnfaithfulCacheError
from workers.distill.rendering import Renderer
from workers.distill.teachers import LocalTeacher
from workers.distill.tokenizers import load_tokenizer
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.caching import DAMAGED, Shards, give_up, sound
from workers.tasks.sets import checkpoint_folder, read_conversations, version_path

UNFAITHFUL = "unfaithful_cache"
DROPPED = "What the cache held of this teacher is dropped: try again, and it is captured anew."


class PrecomputeInputs(Inputs):
    job: PrecomputeJob
    teacher: str
    conversations: str
    space: CacheSpace
    shards: Shards


class PrecomputeTask:
    kind = JobKind.PRECOMPUTE
    inputs: type[Inputs] = PrecomputeInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = PrecomputeJob.model_validate(spec)
        folder, card = checkpoint_folder(session, job.teacher_id, settings)
        space = service.space_of(card, job.profile)
        service.open_space(session, space, teacher_id=job.teacher_id)
        return PrecomputeInputs(
            job=job,
            teacher=folder,
            conversations=version_path(session, job.dataset_version_id, settings),
            space=space,
            shards={
                str(path): entries
                for path, entries in service.shards(session, space.address, settings).items()
            },
        )

    def run(self, inputs: PrecomputeInputs, context: BodyContext) -> dict[str, Any]:
        calls = context.callbacks
        calls.phase("check the shards")
        shards = sound(inputs.shards, inputs.space.address, calls)
        calls.phase("load")
        tokenizer = load_tokenizer(Path(inputs.teacher))
        conversations = read_conversations(inputs.conversations, ("train", "validation"))
        rendered = Renderer(tokenizer, inputs.job.render).render_all(conversations)
        for reason, count in rendered.skipped.items():
            calls.log(f"{count} conversations left out: {reason}", "warning")
        if rendered.in_parts:
            calls.log(f"{rendered.in_parts} conversations in parts: the template rewrites turns")
        teacher = LocalTeacher(
            load_model(Path(inputs.teacher)).to(compute_device()), inputs.space.vocabulary
        )
        calls.phase("capture")
        report, made = capture(
            rendered.rendered,
            teacher,
            inputs.space,
            folder=context.workdir,
            callbacks=calls,
            cached=[entry for entries in shards.values() for entry in entries],
            shard_rows=inputs.job.shard_rows,
        )
        files = [*shards, *(shard.path for shard in made)]
        if inputs.job.check_faithfulness and not calls.should_stop():
            calls.phase("check against the live teacher")
            found = check_faithfulness(rendered.rendered, teacher, inputs.job.profile, files)
            calls.log(found.sentence, "info" if found.passed else "error")
            if not found.passed:
                calls.publish({"kind": UNFAITHFUL, "space": inputs.space.address})
                raise UnfaithfulCacheError(f"{found.sentence} {DROPPED}")
            report = report.model_copy(update={"faithfulness": found})
        return {"address": inputs.space.address, "report": report.model_dump(mode="json")}

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None:
        if payload["kind"] == UNFAITHFUL:
            service.forget(session, payload["space"])
        elif payload["kind"] == DAMAGED:
            give_up(session, payload)
        else:
            service.add_shard(session, payload, fence=held.fence, settings=settings)

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        del settings
        job = PrecomputeJob.model_validate(held.spec)
        found = CacheReport.model_validate(result["report"])
        service.captured(session, result["address"], job, found)


TASKS: dict[JobKind, Task] = {JobKind.PRECOMPUTE: PrecomputeTask()}
