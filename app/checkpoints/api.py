"""Checkpoints of a project under /api/v1."""

from collections.abc import Sequence

from fastapi import APIRouter, Request

from app.checkpoints import queries, service
from app.checkpoints.queries import CheckpointLine
from app.checkpoints.schemas import (
    CheckpointAdd,
    CheckpointOut,
    CheckpointRetry,
    ServerKey,
    StudentEstimate,
    StudentMake,
    StudentSizes,
)
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require, services

router = APIRouter(prefix="/api/v1/projects/{project}/checkpoints", tags=["checkpoints"])


def shown(lines: Sequence[CheckpointLine]) -> list[CheckpointOut]:
    """Return a project's checkpoints as the API gives them."""
    cut = queries.cut_from(lines)
    return [
        CheckpointOut.model_validate(line.row).model_copy(
            update={
                "role": line.role,
                "compression": line.compression,
                "tokenizer": line.verdict,
                "students": [student.row.id for student in cut.get(line.row.id, ())],
            }
        )
        for line in lines
    ]


@router.get("", dependencies=[require(Permission.READ)])
def list_checkpoints(project: ProjectDep, session: SessionDep) -> list[CheckpointOut]:
    return shown(queries.lines(session, project))


@router.post("", status_code=202, dependencies=[require(Permission.WRITE)])
def add_checkpoint(
    request: Request,
    project: ProjectDep,
    data: CheckpointAdd,
    session: SessionDep,
    user: CurrentUser,
) -> CheckpointOut:
    settings = services(request).settings
    row = service.register(session, project, data, settings=settings, owner=user.name)
    return CheckpointOut.model_validate(row)


@router.post("/students", status_code=202, dependencies=[require(Permission.WRITE)])
def make_student(
    project: ProjectDep, data: StudentMake, session: SessionDep, user: CurrentUser
) -> CheckpointOut:
    row = service.make_student(session, project, data, owner=user.name)
    return CheckpointOut.model_validate(row)


@router.post("/students/estimate", dependencies=[require(Permission.READ)])
def estimate_student(
    project: ProjectDep, data: StudentSizes, session: SessionDep
) -> StudentEstimate:
    """Return what a student of these sizes would be: arithmetic, nothing is made."""
    card, found = service.estimate_student(session, project, data)
    return StudentEstimate(card=card, compression=found)


@router.post("/{checkpoint_id}/retry", status_code=202, dependencies=[require(Permission.WRITE)])
def retry_checkpoint(
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    data: CheckpointRetry | None = None,
) -> CheckpointOut:
    """Start a checkpoint's failed or cancelled job again."""
    row = service.get(session, project.id, checkpoint_id)
    given = data or CheckpointRetry()
    service.retry(
        session,
        row,
        settings=settings,
        owner=user.name,
        token=given.token,
        api_key=given.api_key,
    )
    return CheckpointOut.model_validate(row)


@router.put("/{checkpoint_id}/key", dependencies=[require(Permission.WRITE)])
def set_server_key(
    project: ProjectDep,
    checkpoint_id: int,
    data: ServerKey,
    session: SessionDep,
    settings: SettingsDep,
) -> CheckpointOut:
    """Replace (or, without one, forget) the API key that later jobs send to its server."""
    row = service.get(session, project.id, checkpoint_id)
    service.set_key(settings, row, data.api_key)
    return CheckpointOut.model_validate(row)
