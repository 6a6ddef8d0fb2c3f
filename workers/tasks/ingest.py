"""Inspect an upload, import uploads into a draft version, freeze a version."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from app.datasets import queries, service
from app.datasets.models import DatasetVersion, Upload
from app.errors import NotFound
from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.conversation import ImportFunnel, InspectReport
from app.specs.fingerprint import file_sha256
from app.specs.jobs import FreezeJob, ImportJob, InspectJob, JobKind
from app.storage.blobs import LocalBlobs
from workers.distill.errors import TemplateError, TokenizerError
from workers.ingest.pipeline import import_files, inspect
from workers.job.task import BodyContext, Inputs, Task
from workers.tasks.sets import NoParts


class FilesInputs(Inputs):
    """Where the uploads lie, and what people call them."""

    paths: tuple[str, ...]
    names: tuple[str, ...]


class ImportInputs(FilesInputs):
    job: ImportJob


class FreezeInputs(Inputs):
    version_id: int
    path: str
    teacher: str | None
    """Folder of the project's teacher when it is ready: its tokenizer counts the tokens."""
    tokens_key: str | None


class InspectTask(NoParts):
    kind = JobKind.INSPECT
    inputs: type[Inputs] = FilesInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        upload = session.get(Upload, InspectJob.model_validate(spec).upload_id)
        if upload is None:
            raise NotFound("The upload was removed. Send the file again.")
        path = service.upload_path(settings, upload.key)
        return FilesInputs(paths=(str(path.absolute()),), names=(upload.filename,))

    def run(self, inputs: FilesInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("inspect")
        report = inspect([Path(p) for p in inputs.paths], inputs.names)
        return report.model_dump(mode="json")

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        del settings
        upload_id = InspectJob.model_validate(held.spec).upload_id
        service.inspected(session, upload_id, InspectReport.model_validate(result))


class ImportTask(NoParts):
    kind = JobKind.IMPORT
    inputs: type[Inputs] = ImportInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        job = ImportJob.model_validate(spec)
        version = session.get(DatasetVersion, job.dataset_version_id)
        found = {u.id: u for u in _uploads(session, job)}
        if version is None or len(found) != len(job.upload_ids):
            raise NotFound("The version or an upload was removed. Start the import again.")
        uploads = [found[i] for i in job.upload_ids]
        paths = tuple(str(service.upload_path(settings, u.key).absolute()) for u in uploads)
        return ImportInputs(paths=paths, names=tuple(u.filename for u in uploads), job=job)

    def run(self, inputs: ImportInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("import")
        out = context.workdir / "import"
        out.mkdir(exist_ok=True)
        funnel = import_files(
            [Path(p) for p in inputs.paths],
            names=inputs.names,
            format=inputs.job.format,
            reference_path=inputs.job.reference_path,
            validation_share=inputs.job.validation_share,
            test_share=inputs.job.test_share,
            out_dir=out,
            callbacks=context.callbacks,
        )
        return {"folder": str(out.absolute()), "funnel": funnel.model_dump(mode="json")}

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        version_id = ImportJob.model_validate(held.spec).dataset_version_id
        blobs, folder = LocalBlobs(settings.blobs), Path(result["folder"])
        # A key of this attempt's own: a file that a version names is never written again.
        base = f"datasets/{version_id}/{held.fence}-{secrets.token_hex(4)}"
        names = (f"{base}/conversations.parquet", f"{base}/rejects.jsonl")
        for key in names:
            blobs.put_file(folder / key.rsplit("/", 1)[-1], key)
        funnel = ImportFunnel.model_validate(result["funnel"])
        service.imported(session, version_id, funnel, conversations=names[0], rejects=names[1])


def _uploads(session: Session, job: ImportJob) -> list[Upload]:
    found = (session.get(Upload, upload_id) for upload_id in job.upload_ids)
    return [upload for upload in found if upload is not None]


class FreezeTask(NoParts):
    kind = JobKind.FREEZE
    inputs: type[Inputs] = FreezeInputs

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        version_id = FreezeJob.model_validate(spec).dataset_version_id
        version = session.get(DatasetVersion, version_id)
        if version is None:
            raise NotFound(f"There is no dataset version {version_id} any more.")
        path = service.conversations_path(version, settings)
        teacher = queries.teacher_of_version(session, version)
        key = service.tokens_key(version, teacher)
        blob = teacher.blob if teacher is not None and key is not None else None
        folder = str(LocalBlobs(settings.blobs).path(blob).absolute()) if blob else None
        return FreezeInputs(
            version_id=version_id, path=str(path.absolute()), teacher=folder, tokens_key=key
        )

    def run(self, inputs: FreezeInputs, context: BodyContext) -> dict[str, Any]:
        context.callbacks.phase("freeze")
        found = {"sha256": file_sha256(Path(inputs.path))}
        if inputs.teacher is None:
            return found
        # Torch comes with it: seconds that no import of a log should wait.
        from workers.distill.lengths import token_counts  # noqa: PLC0415

        context.callbacks.phase("count tokens")
        try:
            counts = token_counts(Path(inputs.path), Path(inputs.teacher), context.callbacks)
        except (TokenizerError, TemplateError) as error:
            context.callbacks.log(f"The tokens are not counted. {error}", "warning")
            return found
        file = context.workdir / "tokens.npy"
        np.save(file, counts)
        return found | {"tokens": str(file.absolute()), "tokens_key": inputs.tokens_key}

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        version_id = FreezeJob.model_validate(held.spec).dataset_version_id
        if "tokens" in result:
            LocalBlobs(settings.blobs).put_file(Path(result["tokens"]), result["tokens_key"])
        service.frozen(session, version_id, result["sha256"])


TASKS: dict[JobKind, Task] = {
    JobKind.INSPECT: InspectTask(),
    JobKind.IMPORT: ImportTask(),
    JobKind.FREEZE: FreezeTask(),
}
