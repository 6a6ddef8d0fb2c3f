"""Pages: the evaluations of a project, and the report of one."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from app.dashboard import service as dashboard
from app.dashboard.evaluation_view import examples_of, report_of
from app.errors import Conflict
from app.evaluations import queries, service
from app.evaluations.api import COLUMNS
from app.evaluations.models import Evaluation
from app.evaluations.schemas import ExampleFilter
from app.jobs import queries as jobs
from app.metrics.registry import METRICS
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.runs.queries import number_of
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require
from app.web.tables import TableState, keyset, page, read_state
from app.web.templating import render

router = APIRouter(prefix="/projects/{project}/evaluations", include_in_schema=False)
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
KEYS = (("1", "losses"), ("2", "wins"), ("3", "ties"))


@router.get("", name="evaluations.index", dependencies=READ)
def index(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    state = read_state(request.url.path, request.query_params, COLUMNS, filters=("search",))
    home = f"/projects/{project.slug}"
    context = {
        **_listed(session, project, state),
        "project": project,
        "home": home,
        "crumbs": ((project.name, home), ("Evaluations", None)),
        "nav": "evaluation",
    }
    return render(request, "dashboard/evaluations.html", context, block="rows")


def _listed(session: Session, project: Project, state: TableState) -> dict[str, Any]:
    statement = queries.listing(project.id)
    if state.filters.get("search"):
        words = state.filters["search"]
        statement = statement.where(Evaluation.name.icontains(words, autoescape=True))
    rows = session.execute(keyset(statement, state, Evaluation.id)).all()
    found = page(rows, state, lambda row: (getattr(row[0], state.sort.key), row[0].id))
    decides = project.deciding_metric
    return {
        "found": found,
        "evaluations": queries.shown(session, found.rows, [decides]),
        "metric": METRICS[decides],
        "state": state,
        "columns": {column.key: column for column in COLUMNS},
    }


@router.get("/{evaluation_id}", name="evaluations.show", dependencies=READ)
def show(
    request: Request,
    project: ProjectDep,
    evaluation_id: int,
    session: SessionDep,
    settings: SettingsDep,
    wanted: Annotated[ExampleFilter, Query()],
) -> Response:
    found = service.get(session, project.id, evaluation_id)
    if "metric" not in request.query_params:
        wanted = wanted.model_copy(update={"metric": project.deciding_metric})
    stored, path = service.has_examples(found, settings), request.url.path
    examples = examples_of(session, found, wanted, settings, path) if stored else None
    context = {**_reported(session, project, found), "examples": examples}
    # A page that waits fetches its report; one with examples fetches those of another filter.
    block = "report" if request.query_params.get("part") == "report" else "examples_block"
    return render(request, "dashboard/evaluation.html", context, block=block)


def _reported(session: Session, project: Project, found: Evaluation) -> dict[str, Any]:
    home, version = f"/projects/{project.slug}", found.dataset_version_id
    names, waits = queries.set_names(session, {version}), found.state != "done"
    return {
        "project": project,
        "home": home,
        "evaluation": found,
        "report": None if waits else report_of(session, project, found),
        "run_number": number_of(session, found.run_id),
        "set_name": names.get(version, "a removed version"),
        "line": jobs.one(session, found.job_id) if waits and found.job_id else None,
        "crumbs": (
            (project.name, home),
            ("Evaluations", f"{home}/evaluations"),
            (found.name, None),
        ),
        "nav": "evaluation",
        "page_keys": KEYS,
    }


@router.get("/{evaluation_id}/examples.parquet", name="evaluations.download", dependencies=READ)
def download(
    project: ProjectDep, evaluation_id: int, session: SessionDep, settings: SettingsDep
) -> Response:
    found = service.get(session, project.id, evaluation_id)
    path = service.examples_path(found, settings)
    return FileResponse(path, filename=f"{project.slug}-evaluation-{found.id}.parquet")


@router.get(
    "/{evaluation_id}/prompts/{conversation_id}", name="evaluations.prompt", dependencies=READ
)
def prompt(
    request: Request,
    project: ProjectDep,
    evaluation_id: int,
    conversation_id: str,
    session: SessionDep,
    settings: SettingsDep,
) -> Response:
    """Give the whole prompt of an example; opened by itself, a page of its own."""
    found = service.get(session, project.id, evaluation_id)
    home = f"/projects/{project.slug}/evaluations"
    context = {
        "project": project,
        "prompt": service.prompt(session, found, conversation_id, settings),
        "crumbs": (
            (project.name, f"/projects/{project.slug}"),
            ("Evaluations", home),
            (found.name, f"{home}/{found.id}"),
            ("Prompt", None),
        ),
        "nav": "evaluation",
    }
    return render(request, "dashboard/prompt.html", context, block="whole")


@router.post("/{evaluation_id}/retry", name="evaluations.retry", dependencies=WRITE)
def retry(
    project: ProjectDep, evaluation_id: int, session: SessionDep, user: CurrentUser
) -> Response:
    found = service.get(session, project.id, evaluation_id)
    if found.job_id is None:
        raise Conflict("The job of this evaluation was removed: start a run on its set.")
    dashboard.retry(session, found.job_id, owner=user.name)
    address = f"/projects/{project.slug}/evaluations/{found.id}"
    return RedirectResponse(address, status_code=303)
