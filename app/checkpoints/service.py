"""Register checkpoints, make pruned students, and keep what their jobs found."""

import socket
import time
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.checkpoints import queries
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd, StudentMake, StudentSizes
from app.errors import Conflict, InvalidInput, NotFound
from app.jobs import queries as job_queries
from app.jobs import service as jobs
from app.jobs.endings import when_unfinished
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.security.kept import keep
from app.settings import Settings
from app.specs.checkpoint import (
    CheckpointCard,
    CheckpointSource,
    Compression,
    EndpointSource,
    FolderSource,
    PruneSpec,
    compression,
)
from app.specs.checkpoint_folder import source_problem
from app.specs.endpoint import place_of, saved_refusal
from app.specs.jobs import QUEUE_OF, JobKind, PruneJob, Queue, RegisterJob
from app.specs.pruning import PRUNABLE, Shape, pruned_card, shape_problems
from app.storage.blobs import LocalBlobs

TOKEN_GRACE_SECONDS = 60
FILES_LOCK = 7_310_004
"""First key of the advisory locks on the files of checkpoints."""


def get(session: Session, project_id: int, checkpoint_id: int) -> Checkpoint:
    found = queries.one(session, project_id, checkpoint_id)
    if found is None:
        raise NotFound(f"This project has no checkpoint {checkpoint_id}.")
    return found


def named(session: Session, project_id: int, name: str | int) -> Checkpoint:
    """Return the checkpoint of a name, or of an id where no name is meant."""
    found = None if isinstance(name, int) else queries.by_name(session, project_id, name)
    if found is None and str(name).isdecimal():
        found = queries.one(session, project_id, int(name))
    if found is None:
        raise NotFound(f"This project has no checkpoint “{name}”.")
    return found


def stream_of(checkpoint_id: int) -> str:
    """Return the event stream its jobs report to."""
    return f"checkpoint:{checkpoint_id}"


def job_of(row: Checkpoint) -> int:
    if row.job_id is None:
        raise Conflict(f"“{row.name}” has no job.")
    return row.job_id


def require(session: Session, checkpoint_id: int) -> Checkpoint:
    found = session.get(Checkpoint, checkpoint_id)
    if found is None:
        raise NotFound(f"There is no checkpoint {checkpoint_id} any more.")
    return found


def require_ready(session: Session, checkpoint_id: int) -> Checkpoint:
    found = require(session, checkpoint_id)
    if found.state != "ready" or found.blob is None:
        raise Conflict(f"“{found.name}” is {found.state}. Register it first.")
    return found


def _add(session: Session, project: Project, name: str, origin: dict[str, Any]) -> Checkpoint:
    if queries.by_name(session, project.id, name) is not None:
        sentence = f"This project already has a checkpoint “{name}”."
        raise InvalidInput(sentence, fields={"name": "Is taken in this project."})
    row = Checkpoint(project_id=project.id, name=name, state="registering", origin=origin)
    session.add(row)
    session.flush()
    return row


def register(
    session: Session, project: Project, data: CheckpointAdd, *, settings: Settings, owner: str
) -> Checkpoint:
    """Add a checkpoint and ask for the job that fetches and reads it."""
    check_source(session, data.source, settings)
    if data.api_key and not isinstance(data.source, EndpointSource):
        sentence = "Only a server is asked with a key."
        raise InvalidInput(sentence, fields={"api_key": sentence})
    row = _add(session, project, data.name, data.source.model_dump())
    if data.token:
        keep_token(settings, row.id, data.token)
    set_key(settings, row, data.api_key)
    spec = RegisterJob(checkpoint_id=row.id, source=data.source)
    row.job_id = _ask(session, project, row, JobKind.REGISTER, spec, owner)
    return row


def check_source(session: Session, source: CheckpointSource, settings: Settings) -> None:
    """Raise InvalidInput for what the job would refuse, where it can be seen from here.

    A path can, where every worker that may take the job was heard on this host; of a server's
    address what needs no look-up of its name.
    """
    if isinstance(source, EndpointSource):
        problem = saved_refusal(source.base_url, settings.endpoint_hosts)
        if problem is not None:
            raise InvalidInput(problem, fields={"base_url": problem})
    if not isinstance(source, FolderSource):
        return
    queue = QUEUE_OF[JobKind.REGISTER]
    hosts = {w.host for w in job_queries.workers(session) if w.alive and w.queue == queue}
    if hosts != {socket.gethostname()}:
        return
    try:
        problem = source_problem(Path(source.path).expanduser())
    except (OSError, RuntimeError):
        return  # a folder this program may not read, or a home it does not know: the job tells
    if problem is not None:
        raise InvalidInput(problem, fields={"path": problem})


def make_student(
    session: Session, project: Project, data: StudentMake, *, owner: str
) -> Checkpoint:
    """Ask for a student cut out of a teacher of this project."""
    teacher = get(session, project.id, data.teacher_id)
    if teacher.state != "ready" or teacher.card is None:
        raise Conflict(f"“{teacher.name}” is {teacher.state}; a student needs a ready teacher.")
    check_shape(CheckpointCard.model_validate(teacher.card), data.prune)
    version = data.dataset_version_id
    if version is not None and not queries.can_calibrate(session, project.id, version):
        sentence = "This project has no such version with conversations."
        raise InvalidInput("Choose calibration data.", fields={"dataset_version_id": sentence})
    origin = {
        "kind": "pruned",
        "teacher_id": teacher.id,
        "prune": data.prune.model_dump(exclude_none=True),
    }
    row = _add(session, project, data.name, origin)
    spec = PruneJob(
        checkpoint_id=row.id,
        teacher_id=teacher.id,
        dataset_version_id=data.dataset_version_id,
        prune=data.prune,
    )
    row.job_id = _ask(session, project, row, JobKind.PRUNE, spec, owner)
    return row


def estimate_student(
    session: Session, project: Project, data: StudentSizes
) -> tuple[CheckpointCard, Compression]:
    """Return the card that a student of these sizes would have, and how much smaller it is."""
    teacher = get(session, project.id, data.teacher_id)
    if teacher.card is None:
        raise Conflict(f"“{teacher.name}” is {teacher.state}; a student needs a ready teacher.")
    card = CheckpointCard.model_validate(teacher.card)
    check_shape(card, data.prune)
    made = pruned_card(card, data.prune)
    found = compression(card, made) if made is not None else None
    if made is None or found is None:
        raise Conflict(f"The counts of “{teacher.name}” do not add up as a llama type's do.")
    return made, found


def _ask(
    session: Session,
    project: Project,
    row: Checkpoint,
    kind: JobKind,
    spec: RegisterJob | PruneJob,
    owner: str,
) -> int:
    verb = "Register" if kind == JobKind.REGISTER else "Prune"
    request = JobRequest(
        kind=kind,
        spec=spec,
        stream=stream_of(row.id),
        title=f"{verb} {row.name}",
        project_id=project.id,
        owner=owner,
    )
    return enqueue(session, request).id


def check_shape(card: CheckpointCard, prune: PruneSpec) -> None:
    """Raise InvalidInput with the field and the mend when a student cannot be cut so."""
    if card.server is not None:
        sentence = "A checkpoint behind a server has no weights here to cut a student from."
        raise InvalidInput(sentence, fields={"teacher_id": "Choose one with weights here."})
    if card.architecture not in PRUNABLE:
        sentence = f"{card.architecture} cannot be pruned; llama, mistral and qwen2 can."
        raise InvalidInput(sentence, fields={"teacher_id": "Choose another teacher."})
    wrong = shape_problems(Shape.of(card), prune)
    if wrong:
        fields = {name: text[:1].upper() + text[1:] for name, text in wrong.items()}
        raise InvalidInput("Such a student cannot be cut out of its teacher.", fields=fields)


def compression_between(teacher: Checkpoint, student: Checkpoint) -> Compression | None:
    """Return how much smaller the student is, or None while a card is missing."""
    if teacher.card is None or student.card is None:
        return None
    return compression(
        CheckpointCard.model_validate(teacher.card), CheckpointCard.model_validate(student.card)
    )


def retry(
    session: Session,
    row: Checkpoint,
    *,
    settings: Settings,
    owner: str,
    token: str | None = None,
    api_key: str | None = None,
) -> Job:
    """Start the checkpoint's job again; a hub token was destroyed with the first try.

    A server's key is kept, and replaced where another one is given.
    """
    again = jobs.retry(session, job_of(row), owner=owner)
    retried(session, again)
    if token and again.kind == JobKind.REGISTER:
        keep_token(settings, row.id, token)
    if api_key:
        set_key(settings, row, api_key)
    return again


def retried(session: Session, again: Job) -> None:
    """Let a retried job fill its checkpoint."""
    row = require(session, again.spec["checkpoint_id"])
    row.state, row.error, row.job_id = "registering", None, again.id
    session.flush()


def store(session: Session, folder: Path, blob: str, settings: Settings) -> None:
    """Make a folder the files of a checkpoint; equal content already stored is used again."""
    _hold(session, blob)
    LocalBlobs(settings.blobs).put_folder(folder, blob)


def _hold(session: Session, blob: str) -> None:
    """Let nobody else store or remove these files before this transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(FILES_LOCK, func.hashtext(blob))))


def locked(session: Session, project_id: int, checkpoint_id: int) -> Checkpoint:
    """Return a checkpoint that nothing can begin to use meanwhile. Raises NotFound."""
    found = queries.one(session, project_id, checkpoint_id, lock=True)
    if found is None:
        raise NotFound(f"This project has no checkpoint {checkpoint_id}.")
    return found


def remove(session: Session, row: Checkpoint, settings: Settings) -> str | None:
    """Delete a checkpoint's row, its jobs and its token; return the key of its files."""
    blob = row.blob
    session.execute(delete(Job).where(Job.stream == stream_of(row.id)))
    session.delete(row)
    session.flush()
    drop_token(settings, row.id)
    key_file(settings, row.id).unlink(missing_ok=True)
    return blob


def drop_files(session: Session, blob: str | None, settings: Settings) -> None:
    """Remove a removed checkpoint's files, unless another one has the same."""
    if blob is None:
        return
    _hold(session, blob)
    if not queries.has_files(session, blob):
        LocalBlobs(settings.blobs).delete(blob)


def ready(
    session: Session,
    checkpoint_id: int,
    card: CheckpointCard,
    blob: str,
    *,
    commit: str | None = None,
) -> Checkpoint:
    """Write what the job found; `commit` is what a hub's revision was when it was fetched."""
    row = require(session, checkpoint_id)
    if commit is not None:
        row.origin = {**row.origin, "commit": commit}
    row.state, row.error, row.blob = "ready", None, blob
    row.card = card.model_dump(mode="json")
    row.weights_fingerprint = card.weights_fingerprint
    row.tokenizer_fingerprint = card.tokenizer_fingerprint
    session.flush()
    return row


@when_unfinished(JobKind.REGISTER, JobKind.PRUNE)
def unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    row = session.get(Checkpoint, spec["checkpoint_id"])
    if row is not None and row.state != "ready":
        row.state, row.error = "failed", message
        session.flush()


def queue_of(row: Checkpoint | None) -> Queue | None:
    """Return whose workers ask a served checkpoint: no card computes; None for one with weights."""
    served = row is not None and (row.card or {}).get("server") is not None
    return Queue.CPU if served else None


def token_file(settings: Settings, checkpoint_id: int) -> Path:
    return settings.home / "secrets" / f"hub-{checkpoint_id}"


def keep_token(settings: Settings, checkpoint_id: int, token: str) -> None:
    """Keep a hub token for the job: mode 0600, deleted when the job ends."""
    keep(token_file(settings, checkpoint_id), token)


def key_file(settings: Settings, checkpoint_id: int) -> Path:
    """Return where the API key of a served checkpoint lies, if it has one."""
    return settings.home / "secrets" / f"endpoint-{checkpoint_id}"


def has_key(settings: Settings, checkpoint_id: int) -> bool:
    return key_file(settings, checkpoint_id).is_file()


def set_key(settings: Settings, row: Checkpoint, api_key: str | None) -> None:
    """Keep the key that later jobs send to a checkpoint's server; None or empty forgets it.

    It lies beside the host it is for, and is sent to no other. Errors: Conflict for a checkpoint
    that no server serves.
    """
    if row.origin["kind"] != "endpoint":
        if api_key:
            raise Conflict(f"“{row.name}” is not behind a server, so it needs no key.")
        return
    path = key_file(settings, row.id)
    if api_key:
        keep(path, f"{place_of(row.origin['base_url']).named}\n{api_key}")
    else:
        path.unlink(missing_ok=True)


def drop_stale_tokens(session: Session, settings: Settings) -> None:
    """Remove secrets that nothing waits for.

    A hub token whose job was cancelled in the queue or died early; a server's key whose checkpoint
    is gone. A file younger than a minute may belong to a row that is not committed yet.
    """
    for path in (settings.home / "secrets").glob("*-*"):
        kind, _, number = path.name.partition("-")
        row = session.get(Checkpoint, int(number)) if number.isdecimal() else None
        waits = row is not None and (kind == "endpoint" or row.state == "registering")
        if not waits and time.time() - path.stat().st_mtime > TOKEN_GRACE_SECONDS:
            path.unlink(missing_ok=True)


def drop_token(settings: Settings, checkpoint_id: int) -> None:
    token_file(settings, checkpoint_id).unlink(missing_ok=True)
