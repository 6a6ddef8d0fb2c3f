"""Pages: datasets and uploads, an import, a version and its conversations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import RedirectResponse, Response

from app.datasets import advice, queries, service
from app.datasets.models import DatasetVersion
from app.datasets.queries import KnownDataset, VersionView
from app.datasets.schemas import NEW, ConversationFilter, ImportChoices, ImportForm, previewed
from app.errors import AppError, NotFound
from app.events.queries import last_event_id, log_lines
from app.jobs import queries as jobs
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require, still_signed_in
from app.web.filters import with_query
from app.web.forms import Form, check_form, form_of
from app.web.sse import event_stream
from app.web.tables import SortColumn, keyset, page, read_state
from app.web.templating import is_partial, render

router = APIRouter(prefix="/projects/{project}/datasets", include_in_schema=False)
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
LISTS = frozenset({"upload_ids", "known_ids"})
IMPORT = form_of(ImportForm, lists=LISTS)
MADE = SortColumn("made", DatasetVersion.id, "desc")


def _view(project: ProjectDep, version: int, session: SessionDep) -> VersionView:
    return service.get_view(session, project.id, version)


VersionDep = Annotated[VersionView, Depends(_view)]


def _crumbs(request: Request, project: Project, *rest: tuple[str, str | None]) -> Any:
    home = request.url_for("datasets.index", project=project.slug).path
    return (
        ("Projects", "/projects"),
        (project.name, f"/projects/{project.slug}"),
        ("Data", home),
        *rest,
    )


def _version_url(request: Request, project: Project, version_id: int) -> str:
    return request.url_for("datasets.show", project=project.slug, version=version_id).path


@router.get("", name="datasets.index", dependencies=READ)
def index(
    request: Request, project: ProjectDep, session: SessionDep, settings: SettingsDep
) -> Response:
    state = read_state(request.url.path, request.query_params, [MADE])
    statement = keyset(queries.versions_with_jobs(project.id), state, DatasetVersion.id)
    found = queries.views(session, statement)
    uploads = queries.open_uploads(session, project.id)
    context = {
        "project": project,
        "page": page(found, state, lambda view: (view.version.id, view.version.id)),
        "uploads": uploads,
        "stored": {upload.id: service.stored_bytes(settings, upload) for upload in uploads},
        "leaves": {upload.id: service.leaves_at(settings, upload) for upload in uploads},
        "crumbs": (*_crumbs(request, project)[:-1], ("Data", None)),
    }
    return render(request, "datasets/index.html", {**context, "nav": "data"}, block="rows")


def _import_page(
    request: Request,
    session: SessionDep,
    project: Project,
    form: Form[ImportForm],
    *,
    status: int = 200,
) -> Response:
    """Show the import page as `form.values` have it: they travel in the URL and in the form."""
    values = form.values
    again = _again(session, project, values)
    known = queries.datasets_of(session, project.id)
    choices = service.import_choices(
        session,
        project,
        request.app.state.services.settings,
        upload_ids=_ints(values.get("upload_ids")),
        known_ids=_ints(values.get("known_ids")),
        again=again,
    )
    form.values = values = {**_defaults(again, known, choices), **values}
    here = request.url_for("datasets.upload", project=project.slug).path
    teacher = queries.teacher_of(session, project)
    context = {
        "form": form,
        "choices": choices,
        "known": known,
        "teacher": teacher,
        "others": advice.other_models(choices.models, teacher),
        "link": lambda **changes: f"{here}?{urlencode({**values, **changes}, doseq=True)}",
        "last_event_id": last_event_id(session, service.uploads_stream(project.id)),
        "project": project,
        "crumbs": _crumbs(request, project, ("Import", None)),
        "nav": "data",
        **_preview(choices, values),
    }
    return render(request, "datasets/upload.html", context, block="choices", status=status)


def _ints(values: Any) -> frozenset[int]:
    return frozenset(int(value) for value in values or () if str(value).isdecimal())


def _again(
    session: SessionDep, project: Project, values: Mapping[str, Any]
) -> DatasetVersion | None:
    text = str(values.get("again", ""))
    return service.get_version(session, project.id, int(text)) if text.isdecimal() else None


def _defaults(
    again: DatasetVersion | None, known: list[KnownDataset], choices: ImportChoices
) -> dict[str, Any]:
    """Return what is not chosen yet: the project's one usable dataset, else a new one.

    The newest is no guess: it may have failed, or be about something else.
    """
    name = choices.new_name([dataset.name for dataset in known])
    if again is None:
        usable = [dataset.name for dataset in known if dataset.usable]
        into = usable[0] if len(usable) == 1 else NEW
        start = {"format": "auto", "reference_path": "", "validation": 10, "test": 20}
        return {"into": into, "name": name, **start}
    spec = again.import_spec
    return {
        "into": again.dataset.name,
        "name": name,
        "format": spec["format"],
        "reference_path": spec["reference_path"] or "",
        "validation": f"{100 * spec['validation_share']:.6g}",
        "test": f"{100 * spec['test_share']:.6g}",
    }


def _preview(choices: ImportChoices, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file and the record that the preview shows, as the URL says or the first."""
    looked_at = [upload for upload in choices.uploads if upload.id in choices.reports]
    wanted = str(values.get("file", ""))
    order = [u for u in looked_at if str(u.id) == wanted] + list(choices.chosen) + looked_at
    shown = order[0] if order else None
    found: dict[str, Any] = {"looked_at": looked_at, "shown": shown, "preview": None, "record": 0}
    found["view"] = "json" if values.get("view") == "json" else "chat"
    if shown is not None and (report := choices.reports[shown.id]).previews:
        text = str(values.get("record", ""))
        record = min(int(text), len(report.previews) - 1) if text.isdecimal() else 0
        path = values.get("reference_path") or None
        found |= {"record": record, "preview": previewed(report, record, path)}
    return found


@router.get("/new", name="datasets.upload", dependencies=READ)
def upload(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    query = request.query_params
    values = {key: query.getlist(key) if key in LISTS else query[key] for key in query}
    form = check_form(values, ImportForm)
    return _import_page(request, session, project, Form(values=form.values))


@router.post("", name="datasets.import", dependencies=WRITE)
def start_import(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    user: CurrentUser,
    form: Annotated[Form[ImportForm], Depends(IMPORT)],
) -> Response:
    if form.data is not None:
        try:
            wanted = form.data.request(queries.dataset_names(session, project.id))
            version = service.start_import(session, project, wanted, owner=user.name)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(_version_url(request, project, version.id), status_code=303)
    return _import_page(request, session, project, form, status=422)


@router.post("/uploads/{upload}/drop", name="datasets.drop_upload", dependencies=WRITE)
def drop_upload(
    project: ProjectDep, upload: str, session: SessionDep, settings: SettingsDep
) -> Response:
    """Remove an upload; the page hears `dropped` and fetches its list anew."""
    service.drop_upload(session, service.upload_by_key(session, project.id, upload), settings)
    return Response(status_code=204, headers={"HX-Trigger": '{"dropped": {}}'})


@router.get("/uploads/events", name="datasets.upload_events", dependencies=READ)
async def upload_events(request: Request, project: ProjectDep, after: int = 0) -> Response:
    stream, allowed = service.uploads_stream(project.id), still_signed_in(request)
    return event_stream(request, stream, after=after, still_allowed=allowed)


def _shown(
    request: Request, session: SessionDep, project: Project, view: VersionView
) -> dict[str, Any]:
    """Return what the page of a version shows, but for its rejects."""
    row, funnel = view.version, view.funnel
    stream = service.version_stream(row.id)
    teacher = queries.teacher_of(session, project)
    return {
        "project": project,
        "view": view,
        "version": row,
        "funnel": funnel,
        "uploads": queries.uploads_by_id(session, project.id, row.import_spec["upload_ids"]),
        "teacher": teacher,
        "others": advice.other_models(funnel.models, teacher) if funnel else [],
        "off": service.why_not_frozen(view),
        "line": jobs.one(session, view.job.id) if view.job is not None and view.busy else None,
        "log": log_lines(session, stream, limit=50),
        "last_event_id": last_event_id(session, stream),
        "crumbs": _crumbs(request, project, (f"{row.dataset.name} v{row.number}", None)),
        "nav": "data",
    }


@router.get("/{version}", name="datasets.show", dependencies=READ)
def show(
    request: Request,
    project: ProjectDep,
    version: VersionDep,
    session: SessionDep,
    settings: SettingsDep,
    reason: str = "",
) -> Response:
    context = _shown(request, session, project, version)
    context |= service.reject_lines(version, settings, reason or None)
    return render(request, "datasets/show.html", context, block="version")


@router.get("/{version}/events", name="datasets.events", dependencies=READ)
async def version_events(request: Request, version: VersionDep, after: int = 0) -> Response:
    stream, allowed = service.version_stream(version.version.id), still_signed_in(request)
    return event_stream(request, stream, after=after, still_allowed=allowed)


@router.post("/{version}/freeze", name="datasets.freeze", dependencies=WRITE)
def freeze(
    request: Request,
    project: ProjectDep,
    version: VersionDep,
    session: SessionDep,
    user: CurrentUser,
) -> Response:
    service.start_freeze(session, version.version, owner=user.name)
    return RedirectResponse(_version_url(request, project, version.version.id), status_code=303)


@router.post("/{version}/retry", name="datasets.retry", dependencies=WRITE)
def retry_import(
    request: Request,
    project: ProjectDep,
    version: VersionDep,
    session: SessionDep,
    user: CurrentUser,
) -> Response:
    service.retry_import(session, version, owner=user.name)
    return RedirectResponse(_version_url(request, project, version.version.id), status_code=303)


@router.post("/{version}/cancel", name="datasets.cancel", dependencies=WRITE)
def cancel_import(
    request: Request, project: ProjectDep, version: VersionDep, session: SessionDep
) -> Response:
    service.cancel_import(session, version)
    return RedirectResponse(_version_url(request, project, version.version.id), status_code=303)


@dataclass(frozen=True, slots=True)
class _Panel:
    """The list's address with its filters, and the conversation opened beside it."""

    request: Request
    project: Project
    view: VersionView
    wanted: ConversationFilter
    path: Path
    tokens: Path | None
    after: int

    @property
    def query(self) -> dict[str, str]:
        """The filters that are set, and the row after which the page begins."""
        found = {k: v for k, v in self.wanted.model_dump().items() if v not in (None, "")}
        if self.wanted.reference is not None:
            found["reference"] = str(self.wanted.reference).lower()
        return found | ({"after": str(self.after)} if self.after >= 0 else {})

    def link(self, **changes: Any) -> str:
        """Return the list's address with some of its query changed."""
        place = {"project": self.project.slug, "version": self.view.version.id}
        here = self.request.url_for("datasets.conversations", **place).path
        return with_query(here, self.query, **changes)

    def panel(self, row: int, **changes: Any) -> str:
        """Return the address of the panel of a row."""
        here, _, query = self.link(**changes).partition("?")
        return f"{here}/{row}?{query}" if query else f"{here}/{row}"

    def lists(self) -> dict[str, Any]:
        """Return the page of the list, and the counts of its filters."""
        lines = queries.conversation_page(self.path, self.wanted, after=self.after)
        return {
            "lines": queries.with_tokens(lines, self.tokens),
            "facets": queries.conversation_facets(self.path, self.wanted),
            "wanted": self.wanted,
        }

    def context(self, row: int | None, show: str) -> dict[str, Any]:
        """Return what the panel shows: the conversation of a row, or nothing."""
        found = queries.conversation_at(self.path, row) if row is not None else None
        if row is not None and found is None:
            raise NotFound(f"Version {self.view.version.number} has no conversation in row {row}.")
        shown = "json" if show == "json" else "chat"
        return {
            "project": self.project,
            "view": self.view,
            "version": self.view.version,
            "query": self.query,
            "link": self.link,
            "panel": self.panel,
            "open": row,
            "conversation": found,
            "show": shown,
        }


def _wanted(request: Request) -> ConversationFilter:
    """Read the filters of the URL; an empty or unknown value is no filter."""
    given = {k: v for k, v in request.query_params.items() if v}
    form = check_form(given, ConversationFilter)
    for name in form.errors:
        given.pop(name, None)
    return ConversationFilter.model_validate(given)


def _panel(
    request: Request,
    project: ProjectDep,
    version: VersionDep,
    session: SessionDep,
    settings: SettingsDep,
    wanted: Annotated[ConversationFilter, Depends(_wanted)],
    after: Annotated[int, Query(ge=-1)] = -1,
) -> _Panel:
    path = service.conversations_path(version.version, settings)
    tokens = service.tokens_path(session, version.version, settings)
    return _Panel(request, project, version, wanted, path, tokens, after)


PanelDep = Annotated[_Panel, Depends(_panel)]


@router.get("/{version}/conversations", name="datasets.conversations", dependencies=READ)
def conversations(
    request: Request,
    project: ProjectDep,
    version: VersionDep,
    panel: PanelDep,
    open: str = "",  # noqa: A002 - the word in the URL
    show: str = "chat",
) -> Response:
    row = version.version
    name = f"{row.dataset.name} v{row.number}"
    rest = ((name, _version_url(request, project, row.id)), ("Conversations", None))
    context = {
        **panel.lists(),
        **panel.context(int(open) if open.isdecimal() else None, show),
        "crumbs": _crumbs(request, project, *rest),
        "nav": "data",
    }
    return render(request, "datasets/conversations.html", context, block="table")


@router.get("/{version}/conversations/{row}", name="datasets.conversation", dependencies=READ)
def conversation(
    request: Request, version: VersionDep, panel: PanelDep, row: int, show: str = "chat"
) -> Response:
    """Give the panel of one conversation; opened by itself, the list beside it."""
    del version  # the path's version is the panel's
    if not is_partial(request):
        return RedirectResponse(panel.link(open=row), status_code=303)
    context = panel.context(row, show)
    return render(request, "datasets/conversations.html", context, block="peek")
