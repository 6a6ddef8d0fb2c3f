"""Answers of a checkpoint as a new upload: asked for, and filled in by the job."""

from pathlib import Path

from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.datasets import queries
from app.datasets.models import Upload
from app.datasets.schemas import GenerationRequest
from app.datasets.service import MAX_NAME, finish_upload, hash_upload, new_key, upload_path
from app.errors import Conflict, NotFound
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.settings import Settings
from app.specs.jobs import GenerateJob, JobKind


def start(session: Session, project: Project, data: GenerationRequest, *, owner: str) -> Upload:
    """Ask for a checkpoint's answers; return the upload that they will fill."""
    checkpoint = checkpoints.named(session, project.id, data.checkpoint)
    checkpoints.require_ready(session, checkpoint.id)
    found = queries.uploads_by_id(session, project.id, [data.prompts_upload_id])
    if not found:
        raise NotFound("The upload of prompts is not in this project. Send the file again.")
    prompts = found[0]
    if prompts.state == "uploading":
        raise Conflict(f"“{prompts.filename}” is not stored yet. Wait for the end of the upload.")
    name = f"{Path(prompts.filename).name.split('.')[0]}-answers.jsonl"
    upload = Upload(
        project_id=project.id,
        key=new_key(),
        filename=name[-MAX_NAME:],
        state="uploading",
        origin="generated",
    )
    session.add(upload)
    session.flush()
    spec = GenerateJob(
        checkpoint_id=checkpoint.id,
        output_upload_id=upload.id,
        **data.model_dump(exclude={"checkpoint"}),
    )
    request = JobRequest(
        kind=JobKind.GENERATE,
        spec=spec,
        stream=f"upload:{upload.id}",
        title=f"Answer {prompts.filename} with {checkpoint.name}",
        project_id=project.id,
        owner=owner,
        queue=checkpoints.queue_of(checkpoint),
    )
    upload.job_id = enqueue(session, request).id
    session.flush()
    return upload


def fill(session: Session, upload_id: int, made: Path, settings: Settings) -> None:
    """Give a generated upload its content, and ask for a look at its first records."""
    upload = session.get(Upload, upload_id)
    if upload is None:
        raise NotFound("The upload for the answers was removed.")
    target = upload_path(settings, upload.key)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)
    target.chmod(0o600)
    upload.size, upload.error = target.stat().st_size, None
    upload.state = "uploading"  # also after a failed attempt that was started again
    session.flush()
    finish_upload(session, upload_id, sha256=hash_upload(settings, upload.key), owner="generated")
