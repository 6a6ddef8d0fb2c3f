"""Uploads, imports, frozen versions: what may happen to data, and in which order."""

import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.clock import now
from app.datasets import queries
from app.datasets.models import Dataset, DatasetVersion, Upload
from app.datasets.queries import VersionView
from app.datasets.schemas import ImportChoices, ImportRequest
from app.errors import Conflict, InvalidInput, NotFound, PayloadTooLarge
from app.jobs.endings import when_unfinished
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue, request_cancel, retry
from app.projects.models import Project
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import ImportFunnel, InspectReport
from app.specs.fingerprint import file_sha256
from app.specs.jobs import FreezeJob, ImportJob, InspectJob, JobKind
from app.specs.names import is_visible
from app.storage import uploads as files
from app.storage.blobs import LocalBlobs

MAX_NAME = 255
log = structlog.get_logger()


class DatasetIsFrozen(Conflict):
    title = "A frozen dataset version cannot be changed"


def uploads_stream(project_id: int) -> str:
    """Name the stream of all looks at a project's uploads: their page follows this one."""
    return f"uploads:{project_id}"


def version_stream(version_id: int) -> str:
    return f"version:{version_id}"


def upload_path(settings: Settings, key: str) -> Path:
    return LocalBlobs(settings.blobs).path(f"uploads/{key}")


def start_upload(
    session: Session,
    project: Project,
    *,
    filename: str,
    size: int,
    settings: Settings,
    origin: Literal["browser", "cli"] = "browser",
) -> Upload:
    """Make the upload's row and its empty file. Raises PayloadTooLarge, InvalidInput."""
    if size > settings.max_upload_bytes:
        limit = settings.max_upload_bytes
        raise PayloadTooLarge(f"The file has {size:,} bytes; at most {limit:,} are taken.")
    if size <= 0:
        raise InvalidInput("The file is empty.", fields={"file": "Choose a file with content."})
    name = Path(filename.replace("\\", "/")).name.strip()[:MAX_NAME]
    upload = Upload(
        project_id=project.id,
        key=new_key(),
        filename=name if is_visible(name) else "upload",
        size=size,
        state="uploading",
        origin=origin,
    )
    files.create(upload_path(settings, upload.key))
    session.add(upload)
    session.flush()
    return upload


def new_key() -> str:
    """Return a name for a file that nobody can guess."""
    return secrets.token_urlsafe(24).replace("-", "_").strip("_") + "0"


def upload_by_key(session: Session, project_id: int, key: str) -> Upload:
    found = queries.upload_by_key(session, key)
    if found is None or found.project_id != project_id:
        raise NotFound("There is no such upload. Send the file again.")
    return found


def stored_file(upload: Upload, settings: Settings) -> Path:
    """Return the file of an upload that is there whole. Raises Conflict, NotFound."""
    if upload.sha256 is None:
        raise Conflict(f"“{upload.filename}” is not stored yet. Wait for its end.")
    path = upload_path(settings, upload.key)
    if not path.is_file():
        raise NotFound(f"“{upload.filename}” is no longer stored. Send the file again.")
    return path


def finish_upload(session: Session, upload_id: int, *, sha256: str, owner: str) -> Upload:
    """Note that all bytes are stored and ask for a look at the first records; once only."""
    upload = session.scalar(select(Upload).where(Upload.id == upload_id).with_for_update())
    if upload is None:
        raise NotFound("There is no such upload. Send the file again.")
    if upload.state != "uploading":
        return upload
    upload.state, upload.sha256 = "uploaded", sha256
    request = JobRequest(
        kind=JobKind.INSPECT,
        spec=InspectJob(upload_id=upload.id),
        stream=uploads_stream(upload.project_id),
        title=f"Inspect {upload.filename}",
        project_id=upload.project_id,
        owner=owner,
    )
    upload.job_id = enqueue(session, request).id
    session.flush()
    return upload


def drop_upload(session: Session, upload: Upload, settings: Settings) -> None:
    """Give up an upload that has not been imported."""
    used = session.scalar(
        select(func.count())
        .select_from(DatasetVersion)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(
            Dataset.project_id == upload.project_id,
            DatasetVersion.import_spec["upload_ids"].contains([upload.id]),
        )
    )
    if used:
        raise Conflict(f"“{upload.filename}” belongs to an import and stays.")
    LocalBlobs(settings.blobs).delete(f"uploads/{upload.key}")
    session.delete(upload)
    session.flush()


def leaves_at(settings: Settings, upload: Upload) -> datetime | None:
    """Return when an upload that gets no more bytes is removed; None for one that stays."""
    if upload.state != "uploading" or upload.origin == "generated":
        return None
    path = upload_path(settings, upload.key)
    last = upload.created_at
    if path.is_file():
        last = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return last + timedelta(days=settings.upload_keep_days)


def drop_given_up(session: Session, settings: Settings) -> None:
    """Remove the uploads to which nobody has sent a byte for `upload_keep_days`."""
    for upload in queries.cut_off_uploads(session):
        leaves = leaves_at(settings, upload)
        if leaves is not None and leaves < now():
            LocalBlobs(settings.blobs).delete(f"uploads/{upload.key}")
            session.delete(upload)
            log.info("upload_given_up", upload=upload.id, filename=upload.filename)
    session.flush()


def start_import(
    session: Session, project: Project, data: ImportRequest, *, owner: str
) -> DatasetVersion:
    """Make the next draft version of a dataset and ask for the import."""
    found = queries.uploads_by_id(session, project.id, data.upload_ids)
    if len(found) != len(set(data.upload_ids)):
        raise NotFound("An upload is not in this project. Send the file again.")
    waiting = [upload.filename for upload in found if upload.state == "uploading"]
    if waiting:
        raise Conflict(f"“{waiting[0]}” is not stored yet. Wait for the end of the upload.")
    _refuse_unknown(data.format, found)
    dataset = queries.dataset_named(session, project.id, data.dataset)
    if dataset is None:
        dataset = Dataset(project_id=project.id, name=data.dataset)
        session.add(dataset)
        session.flush()
    version = DatasetVersion(
        dataset=dataset,
        number=queries.last_number(session, dataset.id) + 1,
        state="importing",
        import_spec={},
        notes="",
    )
    session.add(version)
    session.flush()
    spec = ImportJob(
        dataset_version_id=version.id,
        upload_ids=tuple(sorted(set(data.upload_ids))),
        format=data.format,
        reference_path=data.reference_path,
        validation_share=data.validation_share,
        test_share=data.test_share,
    )
    version.import_spec = spec.model_dump(mode="json")
    version.job_id = _ask(session, project.id, version, JobKind.IMPORT, spec, owner)
    return version


def _refuse_unknown(name: str, uploads: Sequence[Upload]) -> None:
    """Refuse a format that does not exist; which there are is told by what looked into a file."""
    reports = (InspectReport.model_validate(u.report) for u in uploads if u.report)
    known = next((report.known_formats for report in reports if report.known_formats), ())
    if known and name not in ("auto", *known):
        sentence = f"There is no format {name}. Take auto, or one of {', '.join(known)}."
        raise InvalidInput(sentence, fields={"format": sentence})


def _ask(
    session: Session,
    project_id: int,
    version: DatasetVersion,
    kind: JobKind,
    spec: ImportJob | FreezeJob,
    owner: str,
) -> int:
    verb = "Import" if kind == JobKind.IMPORT else "Freeze"
    request = JobRequest(
        kind=kind,
        spec=spec,
        stream=version_stream(version.id),
        title=f"{verb} {version.dataset.name} v{version.number}",
        project_id=project_id,
        owner=owner,
    )
    return enqueue(session, request).id


def get_view(session: Session, project_id: int, version_id: int) -> VersionView:
    """Return a version with its job."""
    found = queries.view(session, project_id, version_id)
    if found is None:
        raise NotFound(f"This project has no dataset version {version_id}.")
    return found


def get_version(session: Session, project_id: int, version_id: int) -> DatasetVersion:
    return get_view(session, project_id, version_id).version


def why_not_frozen(view: VersionView) -> str | None:
    """Return why a version cannot be frozen now, in a sentence; None when it can."""
    if view.version.state != "draft":
        return f"Only a draft can be frozen; this version is {view.version.state}."
    if view.freezing:
        return "It is being frozen."
    if view.funnel is None or not view.funnel.targets:
        return "No turn in it is a target, so nothing could be learned from it."
    return None


def start_freeze(session: Session, version: DatasetVersion, *, owner: str) -> int:
    """Ask for the freeze of a draft; return the job. Raises DatasetIsFrozen, Conflict."""
    _changeable(version)
    job = session.get(Job, version.job_id) if version.job_id is not None else None
    if (reason := why_not_frozen(VersionView(version, job))) is not None:
        raise Conflict(reason)
    version.error = None
    project_id = version.dataset.project_id
    spec = FreezeJob(dataset_version_id=version.id)
    version.job_id = _ask(session, project_id, version, JobKind.FREEZE, spec, owner)
    session.flush()
    return version.job_id


def cancel_import(session: Session, view: VersionView) -> None:
    """Stop an import; what it has read is dropped. Raises Conflict when it has ended."""
    if view.version.state != "importing" or view.job is None:
        raise Conflict(f"Nothing is being imported; this version is {view.version.state}.")
    request_cancel(session, view.job.id, "discard")


def retry_import(session: Session, view: VersionView, *, owner: str) -> None:
    """Start a failed or cancelled import again, as it was asked for. Raises Conflict."""
    if view.version.state != "failed" or view.job is None:
        raise Conflict(
            f"Only a failed import can be tried again; this version is {view.version.state}."
        )
    retried(session, retry(session, view.job.id, owner=owner))


def _changeable(version: DatasetVersion) -> None:
    if version.state == "frozen":
        raise DatasetIsFrozen(
            f"Version {version.number} is frozen and cannot be changed. Import a new version."
        )


def edit_notes(session: Session, version: DatasetVersion, notes: str) -> None:
    """Write a person's notes on a draft."""
    _changeable(version)
    version.notes = notes
    session.flush()


def _locked(session: Session, version_id: int) -> DatasetVersion:
    found = session.scalar(
        select(DatasetVersion).where(DatasetVersion.id == version_id).with_for_update()
    )
    if found is None:
        raise NotFound(f"There is no dataset version {version_id} any more.")
    return found


def inspected(session: Session, upload_id: int, report: InspectReport) -> None:
    upload = session.get(Upload, upload_id)
    if upload is not None:
        upload.state, upload.error = "inspected", None
        upload.report = report.model_dump(mode="json")
        session.flush()


@when_unfinished(JobKind.INSPECT)
def inspect_unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    _upload_failed(session, spec["upload_id"], message)


@when_unfinished(JobKind.GENERATE)
def generate_unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    _upload_failed(session, spec["output_upload_id"], message)


def _upload_failed(session: Session, upload_id: int, message: str) -> None:
    upload = session.get(Upload, upload_id)
    if upload is not None and upload.state != "inspected":
        upload.state, upload.error = "failed", message
        session.flush()


def imported(
    session: Session, version_id: int, funnel: ImportFunnel, *, conversations: str, rejects: str
) -> None:
    """Write the result of an import: the version is a draft now."""
    version = _locked(session, version_id)
    _changeable(version)
    version.state, version.error = "draft", None
    version.funnel = funnel.model_dump(mode="json")
    version.conversations_blob, version.rejects_blob = conversations, rejects
    session.flush()


@when_unfinished(JobKind.IMPORT)
def import_unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    version = session.get(DatasetVersion, spec["dataset_version_id"])
    if version is not None and version.state in ("importing", "failed"):
        version.state, version.error = "failed", message
        session.flush()


def frozen(session: Session, version_id: int, content_sha256: str) -> None:
    """Fix a draft by the hash of its conversations file; an equal second freeze changes nothing."""
    version = _locked(session, version_id)
    if version.state == "frozen" and version.content_sha256 == content_sha256:
        return
    _changeable(version)
    version.state, version.error = "frozen", None
    version.content_sha256 = content_sha256
    version.frozen_at = session.scalar(select(func.clock_timestamp()))
    session.flush()


@when_unfinished(JobKind.FREEZE)
def freeze_unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    version = session.get(DatasetVersion, spec["dataset_version_id"])
    if version is not None and version.state == "draft":
        version.error = message
        session.flush()


def conversations_path(version: DatasetVersion, settings: Settings) -> Path:
    if version.conversations_blob is None:
        raise Conflict(f"This version is {version.state}; it has no conversations yet.")
    return LocalBlobs(settings.blobs).path(version.conversations_blob)


def tokens_key(version: DatasetVersion, teacher: Checkpoint | None) -> str | None:
    """Name the file of how many tokens each conversation has for a teacher; None: no such thing.

    Another tokenizer or template counts otherwise: both are part of the name.
    """
    if version.conversations_blob is None or teacher is None or teacher.card is None:
        return None
    card = CheckpointCard.model_validate(teacher.card)
    if card.tokenizer_fingerprint is None:
        return None
    parts = (card.tokenizer_fingerprint[:16], (card.template_fingerprint or "none")[:16])
    return f"{version.conversations_blob}.tokens-{'-'.join(parts)}.npy"


def tokens_path(session: Session, version: DatasetVersion, settings: Settings) -> Path | None:
    key = tokens_key(version, queries.teacher_of_version(session, version))
    return LocalBlobs(settings.blobs).path(key) if key is not None else None


def rejects_path(version: DatasetVersion, settings: Settings) -> Path:
    if version.rejects_blob is None:
        raise Conflict(f"This version is {version.state}; it has no rejects file yet.")
    return LocalBlobs(settings.blobs).path(version.rejects_blob)


def reject_lines(view: VersionView, settings: Settings, reason: str | None) -> dict[str, Any]:
    """Return the first rejects of each reason as `examples`, and those of one as `rejects`."""
    funnel = view.funnel
    if funnel is None or view.version.rejects_blob is None:
        return {"examples": {}, "rejects": [], "reason": None}
    path = rejects_path(view.version, settings)
    reasons = [*funnel.skipped, *funnel.quarantined]
    reason = reason if reason in reasons else None
    return {
        "examples": queries.reject_examples(path, reasons),
        "rejects": queries.rejects(path, reason=reason) if reason else [],
        "reason": reason,
    }


def hash_upload(settings: Settings, key: str) -> str:
    return file_sha256(upload_path(settings, key))


def retried(session: Session, again: Job) -> None:
    """Point the subject of a retried job at the new job: an upload or a version."""
    spec = again.spec
    if again.kind == JobKind.INSPECT:
        upload = session.get(Upload, spec["upload_id"])
        if upload is not None:
            upload.state, upload.error, upload.job_id = "uploaded", None, again.id
    elif again.kind == JobKind.GENERATE:
        upload = session.get(Upload, spec["output_upload_id"])
        if upload is not None:
            upload.state, upload.error, upload.job_id = "uploading", None, again.id
    else:
        version = _locked(session, spec["dataset_version_id"])
        _changeable(version)
        version.error, version.job_id = None, again.id
        if again.kind == JobKind.IMPORT:
            version.state = "importing"
    session.flush()


def import_choices(
    session: Session,
    project: Project,
    settings: Settings,
    *,
    upload_ids: Collection[int],
    known_ids: Collection[int],
    again: DatasetVersion | None,
) -> ImportChoices:
    """Gather the uploads that wait for an import and, with `again`, those of a version.

    An upload that the page did not know yet (`known_ids`) is chosen when it was understood.
    """
    before = list(again.import_spec["upload_ids"]) if again is not None else []
    uploads = [
        *queries.uploads_by_id(session, project.id, before),
        *queries.open_uploads(session, project.id),
    ]
    reports = {u.id: InspectReport.model_validate(u.report) for u in uploads if u.report}

    def is_chosen(upload: Upload) -> bool:
        if upload.id not in reports:
            return False
        if upload.id in known_ids:
            return upload.id in upload_ids
        return upload.id in before if before else reports[upload.id].format is not None

    return ImportChoices(
        uploads=uploads,
        stored={u.id: stored_bytes(settings, u) for u in uploads},
        leaves={u.id: leaves_at(settings, u) for u in uploads},
        chosen=[upload for upload in uploads if is_chosen(upload)],
        reports=reports,
    )


def stored_bytes(settings: Settings, upload: Upload) -> int:
    """Return how much of an upload has arrived; 0 when its file is gone."""
    path = upload_path(settings, upload.key)
    return path.stat().st_size if path.is_file() else 0
