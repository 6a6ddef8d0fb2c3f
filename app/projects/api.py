"""Projects under /api/v1, and the project a path names."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.projects import queries, service
from app.projects.models import Project
from app.projects.schemas import ProjectCreate, ProjectEdit, ProjectOut
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, require

router = APIRouter(prefix="/api/v1/projects", tags=["projects"])


def shown(project: Project) -> ProjectOut:
    """Return a project as people read it: tolerance in points."""
    out = ProjectOut.model_validate(project)
    return out.model_copy(update={"tolerance": service.shown_tolerance(project)})


def _project(project: str, session: SessionDep) -> Project:
    return service.get(session, project)


ProjectDep = Annotated[Project, Depends(_project)]
"""The project of the path parameter `project`, its slug; 404 when there is none."""


@router.get("", dependencies=[require(Permission.READ)])
def list_projects(session: SessionDep, search: str = "") -> list[ProjectOut]:
    return [shown(project) for project in queries.all_projects(session, search=search)]


@router.post("", status_code=201, dependencies=[require(Permission.WRITE)])
def create_project(data: ProjectCreate, session: SessionDep, user: CurrentUser) -> ProjectOut:
    return shown(service.create(session, data, owner_id=user.user_id))


@router.get("/{project}", dependencies=[require(Permission.READ)])
def show_project(project: ProjectDep) -> ProjectOut:
    return shown(project)


@router.put("/{project}", dependencies=[require(Permission.WRITE)])
def edit_project(project: ProjectDep, data: ProjectEdit, session: SessionDep) -> ProjectOut:
    return shown(service.edit(session, project, data))
