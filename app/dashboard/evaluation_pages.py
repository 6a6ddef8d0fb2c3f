"""Pages: the evaluations of a project, and the report of one."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.dashboard.evaluation_view import examples_of, report_of
from app.evaluations import queries, service
from app.evaluations.models import Evaluation
from app.evaluations.schemas import ExampleFilter
from app.jobs.models import Job
from app.metrics.registry import METRICS
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.runs.queries import number_of
from app.security.permissions import Permission
from app.web.deps import SessionDep, SettingsDep, require
from app.web.tables import SortColumn, TableState, keyset, page, read_state
from app.web.templating import render

router = APIRouter(prefix="/projects/{project}/evaluations", include_in_schema=False)
READ = [require(Permission.READ)]
KEYS = (("1", "losses"), ("2", "wins"), ("3", "ties"))
COLUMNS = (
    SortColumn("id", Evaluation.id, "desc"),
    SortColumn("name", Evaluation.name),
    SortColumn("role", Evaluation.role),
    SortColumn("state", Evaluation.state),
)


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
    return render(request, "dashboard/evaluation.html", context, block="examples_block")


def _reported(session: Session, project: Project, found: Evaluation) -> dict[str, Any]:
    home, version = f"/projects/{project.slug}", found.dataset_version_id
    names = queries.set_names(session, {version})
    return {
        "project": project,
        "home": home,
        "evaluation": found,
        "report": report_of(session, project, found) if found.state == "done" else None,
        "run_number": number_of(session, found.run_id),
        "set_name": names.get(version, "a removed version"),
        "job": session.get(Job, found.job_id) if found.job_id else None,
        "crumbs": (
            (project.name, home),
            ("Evaluations", f"{home}/evaluations"),
            (found.name, None),
        ),
        "nav": "evaluation",
        "page_keys": KEYS,
    }


@router.get("/{evaluation_id}/examples.parquet", dependencies=READ)
def download(
    project: ProjectDep, evaluation_id: int, session: SessionDep, settings: SettingsDep
) -> Response:
    found = service.get(session, project.id, evaluation_id)
    path = service.examples_path(found, settings)
    return FileResponse(path, filename=f"{project.slug}-evaluation-{found.id}.parquet")
