"""Pages: the evaluations of a project, and the report of one."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from app.dashboard.evaluation_view import examples_of, report_of
from app.evaluations import queries, service
from app.evaluations.models import Evaluation
from app.evaluations.schemas import ExampleFilter
from app.jobs.models import Job
from app.metrics.registry import METRICS
from app.projects.api import ProjectDep
from app.runs.queries import number_of
from app.security.permissions import Permission
from app.web.deps import SessionDep, SettingsDep, require
from app.web.tables import SortColumn, keyset, page, read_state
from app.web.templating import render

router = APIRouter(prefix="/projects/{project}/evaluations", include_in_schema=False)
READ = [require(Permission.READ)]
KEYS = (("1", "losses"), ("2", "wins"), ("3", "ties"))
COLUMNS = (
    SortColumn("made", Evaluation.id, "desc"),
    SortColumn("name", Evaluation.name),
    SortColumn("role", Evaluation.role),
    SortColumn("state", Evaluation.state),
)


@router.get("", name="evaluations.index", dependencies=READ)
def index(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    state = read_state(request.url.path, request.query_params, COLUMNS, filters=("search",))
    statement = queries.listing(project.id)
    if state.filters.get("search"):
        statement = statement.where(
            Evaluation.name.icontains(state.filters["search"], autoescape=True)
        )
    rows = session.execute(keyset(statement, state, Evaluation.id)).all()
    names = {"made": "id"}
    found = page(
        rows,
        state,
        lambda row: (getattr(row[0], names.get(state.sort.key, state.sort.key)), row[0].id),
    )
    decides = project.deciding_metric
    home = f"/projects/{project.slug}"
    context = {
        "project": project,
        "home": home,
        "found": found,
        "evaluations": queries.shown(session, found.rows, [decides]),
        "metric": METRICS[decides],
        "state": state,
        "columns": {column.key: column for column in COLUMNS},
        "crumbs": ((project.name, home), ("Evaluations", None)),
        "nav": "evaluation",
    }
    return render(request, "dashboard/evaluations.html", context, block="rows")


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
    home = f"/projects/{project.slug}"
    is_done = found.state == "done"
    if "metric" not in request.query_params:
        wanted = wanted.model_copy(update={"metric": project.deciding_metric})
    examples = examples_of(session, found, wanted, settings, request.url.path) if is_done else None
    context = {
        "project": project,
        "home": home,
        "evaluation": found,
        "report": report_of(session, project, found) if is_done else None,
        "examples": examples,
        "run_number": number_of(session, found.run_id),
        "set_name": queries.set_names(session, {found.dataset_version_id}).get(
            found.dataset_version_id, "a removed version"
        ),
        "job": session.get(Job, found.job_id) if found.job_id else None,
        "crumbs": (
            (project.name, home),
            ("Evaluations", f"{home}/evaluations"),
            (found.name, None),
        ),
        "nav": "evaluation",
        "page_keys": KEYS,
    }
    return render(request, "dashboard/evaluation.html", context, block="examples_block")


@router.get("/{evaluation_id}/examples.parquet", dependencies=READ)
def download(
    project: ProjectDep, evaluation_id: int, session: SessionDep, settings: SettingsDep
) -> Response:
    found = service.get(session, project.id, evaluation_id)
    path = service.examples_path(found, settings)
    return FileResponse(path, filename=f"{project.slug}-evaluation-{found.id}.parquet")
