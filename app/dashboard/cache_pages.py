"""Page: a project's teacher caches."""

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from app.dashboard import caches
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.teacher_cache import service
from app.web.deps import SessionDep, SettingsDep, commit_now, require
from app.web.templating import render

router = APIRouter(prefix="/projects/{project}/caches", include_in_schema=False)


@router.get("", name="caches.index", dependencies=[require(Permission.READ)])
def index(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    home = f"/projects/{project.slug}"
    context = {
        "project": project,
        "home": home,
        "items": caches.lines(session, project),
        "crumbs": (("Projects", "/projects"), (project.name, home), ("Teacher cache", None)),
        "nav": "caches",
    }
    return render(request, "dashboard/caches.html", context)


@router.post("/{address}/remove", name="caches.remove", dependencies=[require(Permission.WRITE)])
def remove(
    request: Request, project: ProjectDep, address: str, session: SessionDep, settings: SettingsDep
) -> Response:
    caches.remove(session, project, address)
    commit_now(request, session)
    service.drop_files(session, address, settings)
    return RedirectResponse(f"/projects/{project.slug}/caches", status_code=303)
