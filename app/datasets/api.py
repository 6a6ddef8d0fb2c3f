"""Uploads (tus 1.0), imports, versions, freezing and conversations under /api/v1."""

import asyncio
import base64
import binascii
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from app.datasets import advice, generations, queries, service
from app.datasets.models import DatasetVersion, Upload
from app.datasets.queries import VersionView
from app.datasets.schemas import (
    ConversationFilter,
    ConversationListing,
    ConversationOut,
    GenerationRequest,
    ImportRequest,
    UploadOut,
    VersionOut,
)
from app.errors import InvalidInput, NotFound
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.security.permissions import Permission
from app.settings import Settings
from app.storage.uploads import Appender, offset
from app.web.deps import (
    CurrentUser,
    SessionDep,
    SettingsDep,
    commit_now,
    require,
    services,
)

router = APIRouter(prefix="/api/v1/projects/{project}", tags=["datasets"])
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
log = structlog.get_logger()
TUS = {"Tus-Resumable": "1.0.0", "Cache-Control": "no-store"}


def _count(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not text.isdecimal():
        raise InvalidInput(f"The header {name} must be a whole number.")
    return int(text)


def _filename(header: str) -> str:
    """Return the file's name of tus metadata: comma-separated `key base64` pairs."""
    for pair in header.split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "filename":
            try:
                return base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise InvalidInput("Upload-Metadata is not base64 text.") from error
    return "upload"


def _upload(project: ProjectDep, upload: str, session: SessionDep) -> Upload:
    return service.upload_by_key(session, project.id, upload)


UploadDep = Annotated[Upload, Depends(_upload)]


async def _append(request: Request, appender: Appender) -> int:
    """Write the request's body as it comes; return the offset reached, cut off or not."""
    try:
        async for chunk in request.stream():
            await asyncio.to_thread(appender.write, chunk)
    except ClientDisconnect:
        log.info("upload_cut_off", offset=appender.offset)
    finally:
        await asyncio.to_thread(appender.close)
    return appender.offset


def _out(upload: Upload, settings: Settings) -> UploadOut:
    leaves = service.leaves_at(settings, upload)
    return UploadOut.model_validate(upload).model_copy(update={"leaves_at": leaves})


@router.get("/uploads", dependencies=READ)
def list_uploads(
    project: ProjectDep, session: SessionDep, settings: SettingsDep
) -> list[UploadOut]:
    return [_out(upload, settings) for upload in queries.uploads_of(session, project.id)]


@router.options("/uploads", dependencies=READ, status_code=204)
def tus_options(request: Request) -> Response:
    most = str(services(request).settings.max_upload_bytes)
    facts = {"Tus-Version": "1.0.0", "Tus-Extension": "creation,termination"}
    return Response(status_code=204, headers={**TUS, **facts, "Tus-Max-Size": most})


@router.post("/uploads", dependencies=WRITE, status_code=201)
def tus_create(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    upload = service.start_upload(
        session,
        project,
        filename=_filename(request.headers.get("upload-metadata", "")),
        size=_count(request, "upload-length"),
        settings=services(request).settings,
        origin="cli" if "authorization" in request.headers else "browser",
    )
    place = request.url_for("tus_head", project=project.slug, upload=upload.key).path
    return Response(status_code=201, headers={**TUS, "Location": place})


@router.head("/uploads/{upload}", dependencies=READ)
def tus_head(
    request: Request, upload: UploadDep, session: SessionDep, user: CurrentUser
) -> Response:
    """Tell how much is stored. All of it: a client that lost the last answer sends no more."""
    settings = services(request).settings
    stored = offset(service.upload_path(settings, upload.key))
    if stored == upload.size and upload.state == "uploading":
        digest = service.hash_upload(settings, upload.key)
        service.finish_upload(session, upload.id, sha256=digest, owner=user.name)
    facts = {"Upload-Offset": str(stored), "Upload-Length": str(upload.size)}
    return Response(status_code=200, headers={**TUS, **facts})


@router.get("/uploads/{upload}", dependencies=READ)
def show_upload(upload: UploadDep, settings: SettingsDep) -> UploadOut:
    return _out(upload, settings)


@router.get("/uploads/{upload}/content", dependencies=READ)
def download_upload(request: Request, upload: UploadDep) -> FileResponse:
    """Download a stored file as it came, or a job's answers."""
    path = service.stored_file(upload, services(request).settings)
    return FileResponse(path, media_type="application/octet-stream", filename=upload.filename)


@router.patch("/uploads/{upload}", dependencies=WRITE, status_code=204)
async def tus_patch(
    request: Request, upload: UploadDep, session: SessionDep, user: CurrentUser
) -> Response:
    """Append the body from `Upload-Offset` on; what arrived before a cut connection stays.

    An empty body at the end of the file ends an upload whose last answer was lost.
    """
    settings = services(request).settings
    path = service.upload_path(settings, upload.key)
    start = _count(request, "upload-offset")
    upload_id, size, key = upload.id, upload.size or 0, upload.key
    # Hours may pass while bytes come: no connection of the pool may wait for them.
    await asyncio.to_thread(commit_now, request, session)
    stored = await _append(request, await asyncio.to_thread(Appender, path, start, size))
    if stored == size:
        digest = await asyncio.to_thread(service.hash_upload, settings, key)
        finish = partial(service.finish_upload, sha256=digest, owner=user.name)
        await asyncio.to_thread(finish, session, upload_id)
    return Response(status_code=204, headers={**TUS, "Upload-Offset": str(stored)})


@router.delete("/uploads/{upload}", dependencies=WRITE, status_code=204)
def tus_delete(request: Request, upload: UploadDep, session: SessionDep) -> Response:
    service.drop_upload(session, upload, services(request).settings)
    return Response(status_code=204, headers=TUS)


@router.post("/generations", status_code=202, dependencies=WRITE)
def start_generation(
    project: ProjectDep, data: GenerationRequest, session: SessionDep, user: CurrentUser
) -> UploadOut:
    """Let a checkpoint answer prompts; the answer is the upload they become, with its job."""
    made = generations.start(session, project, data, owner=user.name)
    return UploadOut.model_validate(made)


def _shown(
    session: SessionDep, project: Project, versions: Iterable[DatasetVersion]
) -> list[VersionOut]:
    teacher = queries.teacher_of(session, project)
    found = []
    for version in versions:
        funnel = VersionView(version, None).funnel
        told = advice.warnings_of(funnel, teacher) if funnel is not None else []
        out = VersionOut.model_validate(version)
        found.append(out.model_copy(update={"warnings": told}))
    return found


@router.post("/imports", status_code=202, dependencies=WRITE)
def start_import(
    project: ProjectDep, data: ImportRequest, session: SessionDep, user: CurrentUser
) -> VersionOut:
    made = service.start_import(session, project, data, owner=user.name)
    return _shown(session, project, [made])[0]


@router.get("/versions", dependencies=READ)
def list_versions(project: ProjectDep, session: SessionDep) -> list[VersionOut]:
    return _shown(session, project, queries.versions_of(session, project.id))


@router.get("/versions/{version_id}", dependencies=READ)
def show_version(project: ProjectDep, version_id: int, session: SessionDep) -> VersionOut:
    return _shown(session, project, [service.get_version(session, project.id, version_id)])[0]


@router.post("/versions/{version_id}/freeze", status_code=202, dependencies=WRITE)
def freeze_version(
    project: ProjectDep, version_id: int, session: SessionDep, user: CurrentUser
) -> VersionOut:
    version = service.get_version(session, project.id, version_id)
    service.start_freeze(session, version, owner=user.name)
    return _shown(session, project, [version])[0]


@router.get("/versions/{version_id}/rejects", dependencies=READ)
def download_rejects(
    request: Request, project: ProjectDep, version_id: int, session: SessionDep
) -> FileResponse:
    """Download the rejects as JSON lines, each with its line number and reason."""
    version = service.get_version(session, project.id, version_id)
    path = service.rejects_path(version, services(request).settings)
    return FileResponse(path, media_type="application/x-ndjson", filename="rejects.jsonl")


@router.get("/versions/{version_id}/conversations", dependencies=READ)
def list_conversations(
    request: Request,
    project: ProjectDep,
    version_id: int,
    session: SessionDep,
    wanted: Annotated[ConversationFilter, Depends()],
    after: Annotated[int, Query(ge=-1)] = -1,
) -> ConversationListing:
    version = service.get_version(session, project.id, version_id)
    path = service.conversations_path(version, services(request).settings)
    counts = service.tokens_path(session, version, services(request).settings)
    found = queries.with_tokens(queries.conversation_page(path, wanted, after=after), counts)
    facets = queries.conversation_facets(path, wanted) if after < 0 else None
    return ConversationListing(**dict(found), facets=facets)


@router.get("/versions/{version_id}/conversations/{row}", dependencies=READ)
def show_conversation(
    request: Request, project: ProjectDep, version_id: int, row: int, session: SessionDep
) -> ConversationOut:
    version = service.get_version(session, project.id, version_id)
    path = service.conversations_path(version, services(request).settings)
    found = queries.conversation_at(path, row)
    if found is None:
        raise NotFound(f"Version {version.number} has no conversation in row {row}.")
    return ConversationOut(row=row, conversation=found)
