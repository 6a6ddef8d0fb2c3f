"""Checkpoints of a project under /api/v1."""

from fastapi import APIRouter, Request

from app.checkpoints import queries, service
from app.checkpoints.schemas import CheckpointAdd, CheckpointOut, StudentMake
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, require, services

router = APIRouter(prefix="/api/v1/projects/{project}/checkpoints", tags=["checkpoints"])


@router.get("", dependencies=[require(Permission.READ)])
def list_checkpoints(project: ProjectDep, session: SessionDep) -> list[CheckpointOut]:
    found = queries.of_project(session, project.id)
    return [CheckpointOut.model_validate(row) for row in found]


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


@router.get("/{checkpoint_id}", dependencies=[require(Permission.READ)])
def show_checkpoint(project: ProjectDep, checkpoint_id: int, session: SessionDep) -> CheckpointOut:
    return CheckpointOut.model_validate(service.get(session, project.id, checkpoint_id))
