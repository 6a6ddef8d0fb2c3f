"""Pages: a new run, its estimate while the form is filled in, and its start."""

import secrets
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from app.dashboard import knobs, new_run, run_view
from app.dashboard.new_run import Values
from app.dashboard.run_pages import address, crumbs
from app.errors import AppError
from app.evaluations import service as evaluations
from app.metrics.formatting import duration, number
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.runs import previews, service
from app.runs.models import Run
from app.runs.schemas import CacheOut, EstimateOut, Reason, Seconds
from app.security.permissions import Permission
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard, compression
from app.specs.fingerprint import fingerprint
from app.specs.jobs import JobState, PreviewJob
from app.specs.training import RunSpec
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require
from app.web.forms import Form
from app.web.templating import render

router = APIRouter(include_in_schema=False, prefix="/projects/{project}/runs")
WRITE = [require(Permission.WRITE)]
SPLITS = ("train", "validation", "test")
REASONS = {
    "no_target": "no turn that may be learned",
    "no_reference": "no reference answer",
    "too_long": "its last turn alone is too long",
    "part_too_long": "an answer too long with its question; their other answers are learned",
    "template": "the chat template refuses it",
}
"""Why a conversation cannot be trained on."""
LABELS = {
    **{name: knob.label for name, knob in knobs.BY_NAME.items()},
    "name": "Name",
    "group": "Group",
    "student_id": "Student",
    "dataset_version_id": "Data",
    "teacher_id": "Teacher",
}


async def posted(request: Request) -> Values:
    return new_run.sent(await request.form())


@router.get("/new", name="runs.new", dependencies=WRITE)
def new(
    request: Request, project: ProjectDep, session: SessionDep, settings: SettingsDep
) -> Response:
    """Show the form: its query is the form, and without one it is good enough to press start."""
    query = request.query_params
    if "name" in query:
        values = new_run.filled(session, project, new_run.sent(query))
        return _page(request, session, project, settings, values)
    choices = new_run.choices_of(session, project)
    parent = _parent(session, project, query.get("from", ""))
    if parent is not None:
        values = new_run.cloned_values(session, project, parent)
    else:
        values = new_run.first_values(session, project, choices)
        if query.get("role") in dict.fromkeys(kind for kind, _, _ in new_run.KINDS):
            changed = {**values, "role": query["role"]}
            values = new_run.with_role(session, project, choices, changed)
        student = query.get("student", "")
        if choices.checkpoint(student) is not None:
            values = {**values, "student_id": student}
    return _page(request, session, project, settings, values)


@router.post("", name="runs.start", dependencies=WRITE)
def start(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    values: Annotated[Values, Depends(posted)],
) -> Response:
    (_, own), refused = new_run.read_specs(values), ""
    if own:
        try:
            started = _start_all(session, project, own, values, user, settings)
        except AppError as error:
            session.rollback()
            refused = error.message
        else:
            first = started[0]
            runs = f"/projects/{project.slug}/runs"
            group = f"{runs}?{urlencode({'group': first.group})}" if first.group else runs
            alone = len(started) == 1
            target = address(project, first.number) if alone else group
            return RedirectResponse(target, status_code=303)
    return _page(request, session, project, settings, values, refused=refused, status=422)


@router.post("/preview", name="runs.ask_preview", dependencies=WRITE)
def ask_for_preview(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    values: Annotated[Values, Depends(posted)],
) -> Response:
    """Ask which tokens the form's run would learn; the address keeps the form to come back to."""
    (_, own), refused = new_run.read_specs(values), ""
    if own:
        try:
            job = previews.ask(session, project, own[0], owner=user.name)
        except AppError as error:
            refused = error.message
        else:
            query = urlencode({k: v for k, v in values.items() if k != "key"}, doseq=True)
            target = f"/projects/{project.slug}/runs/preview/{job.id}?{query}"
            return RedirectResponse(target, status_code=303)
    return _page(request, session, project, settings, values, refused=refused, status=422)


@router.get("/preview/{job_id}", name="runs.preview", dependencies=[require(Permission.READ)])
def preview(request: Request, project: ProjectDep, job_id: int, session: SessionDep) -> Response:
    job, found = previews.get(session, project, job_id)
    spec = PreviewJob.model_validate(job.spec)
    base = f"/projects/{project.slug}/runs"
    query = request.url.query
    context = {
        "project": project,
        "crumbs": crumbs(project, ("New run", f"{base}/new"), ("What is learned", None)),
        "nav": "runs",
        "job": job,
        "preview": found,
        "render": spec.render,
        "turns": knobs.BY_NAME["targets"].shown(spec.render.targets),
        "reasons": REASONS,
        "back": f"{base}/new?{query}" if query else f"{base}/new",
        "waits": not JobState(job.state).terminal,
        "here": f"{request.url.path}?{query}" if query else request.url.path,
    }
    return render(request, "runs/preview.html", context, block="preview")


def _start_all(
    session: Session,
    project: Project,
    own: list[RunSpec],
    values: Values,
    user: CurrentUser,
    settings: Settings,
) -> list[Run]:
    """Start the form's runs and those chosen beside them, or none of them.

    The key is that of the page and of what it says: a page that a browser kept may be sent again
    with other choices, and starts another run then.
    """
    parent = _parent(session, project, values.get("parent", ""))
    said = [spec.model_dump(mode="json") for spec in own]
    key = f"{values['key']}:{fingerprint(said)[:16]}" if values.get("key") else None
    specs = new_run.specs_of(session, project, values, own)
    return [
        evaluations.start_run(
            session,
            project,
            spec,
            owner=user.name,
            owner_id=user.user_id,
            settings=settings,
            parent_id=parent.id if parent is not None and at == 0 else None,
            key=f"{key}:{spec.effective_role}:{_place(specs, at)}" if key else None,
        )
        for at, spec in enumerate(specs)
    ]


def _place(specs: list[RunSpec], at: int) -> int:
    """Return which of its kind a run is: the same whatever else starts beside it."""
    role = specs[at].effective_role
    return sum(spec.effective_role == role for spec in specs[:at])


def _parent(session: Session, project: Project, number: str) -> Run | None:
    return service.get(session, project, int(number)).run if number.isdecimal() else None


def _page(
    request: Request,
    session: Session,
    project: Project,
    settings: Settings,
    values: Values,
    *,
    refused: str = "",
    status: int = 200,
) -> Response:
    form, own = new_run.read_specs(values)
    choices = new_run.choices_of(session, project)
    parent = _parent(session, project, str(values.get("parent", "")))
    specs = new_run.specs_of(session, project, values, own)
    found, unknown = new_run.estimates(session, project, specs, settings)
    problems = _problems(form, specs, found, unknown or refused)
    changes = _changes(session, parent, form)
    context = {
        "project": project,
        "crumbs": crumbs(project, ("New run", None)),
        "nav": "runs",
        "form": form,
        "also": values["also"],
        "count": len(specs),
        "key": values.get("key") or secrets.token_urlsafe(12),
        "parent": parent,
        "changes": changes,
        "changed": {change.name for change in changes},
        "next_number": project.last_run_number + 1,
        "kinds": new_run.KINDS,
        "drawn": new_run.DRAWN,
        "presets": new_run.PRESETS,
        "others": [k for k in new_run.KINDS if k[0] in new_run.COMPARED],
        "knobs": {group: knobs.of_group(group) for group in (knobs.OBJECTIVE, *knobs.GROUPS)},
        "labels": LABELS,
        "choices": choices,
        "hints": _hints(choices, values) | _mass(found[0].cache if found else None),
        "estimate": found[0] if found else None,
        "problems": problems,
        "warnings": list(dict.fromkeys(words for one in found for words in one.warnings)),
        "times": _times(found),
        "submitted": status != 200,  # noqa: PLR2004 - a first look shows no summary of errors
    }
    return render(request, "runs/new.html", context, block="form", status=status)


def _problems(
    form: Form[RunSpec], specs: list[RunSpec], found: list[EstimateOut], refused: str
) -> list[Reason]:
    """Return all that keeps the form from being started, and put it at its fields too.

    refused: a sentence of the whole, told where nothing else is.
    """
    problems = [Reason(sentence=words, field=name) for name, words in form.errors.items()]
    if form.message:
        problems.append(Reason(sentence=form.message))
    for at, (spec, one) in enumerate(zip(specs, found, strict=False)):
        if at == 0:
            problems += one.reasons
            continue
        # The fields are the first run's: what keeps another from starting is told beside them.
        told = {problem.sentence for problem in problems}
        problems += [
            Reason(sentence=f"“{spec.name}”: {why.sentence}")
            for why in one.reasons
            if not any(words.endswith(why.sentence) for words in told)
        ]
    if refused and not problems:
        problems.append(Reason(sentence=refused))
    for problem in problems:
        if problem.field is not None:
            form.errors.setdefault(problem.field, problem.sentence)
    form.message = " ".join(problem.sentence for problem in problems if problem.field is None)
    return problems


def _changes(session: Session, parent: Run | None, form: Form[RunSpec]) -> list[knobs.Change]:
    if parent is None or form.data is None:
        return []
    spec = form.data
    shadow = Run(
        teacher_id=spec.teacher_id,
        student_id=spec.student_id,
        dataset_version_id=spec.dataset_version_id,
        checkpoint_id=None,
    )
    return run_view.changes_between(session, parent, shadow, spec)


def range_words(seconds: Seconds) -> str:
    """Return `about 58 m (52 m–1 h 6 m)`."""
    low, high = duration(seconds.low), duration(seconds.high)
    about = f"about {duration(seconds.middle)}"
    return about if low == high else f"{about} ({low}–{high})"


def _roles(of: list[str]) -> list[str]:
    return [f"of {' and '.join(of)}"] if of else []


def _times(found: list[EstimateOut]) -> list[tuple[str, str, str]]:
    """Return (what, how long, why) of each phase and of all runs together."""
    if not found:
        return []
    lines = [
        (
            " ".join((run_view.PHASE_NAMES[part.phase], *_roles(part.of))),
            range_words(part.seconds) if part.seconds else "not known",
            part.basis,
        )
        for part in found[0].parts
    ]
    known = [one.seconds for one in found if one.seconds is not None]
    if len(known) == len(found):
        total = known[0]
        for more in known[1:]:
            total = total + more
        words = "In all" if len(found) == 1 else f"All {len(found)} runs"
        lines.append((words, range_words(total), ""))
    return lines


def _hints(choices: new_run.Choices, values: Values) -> dict[str, str]:
    """Return what to know of the rows chosen: compression, counts, state."""
    hints = {"student_id": "", "dataset_version_id": "", "teacher_id": ""}
    teacher = choices.checkpoint(str(values.get("teacher_id", "")))
    student = choices.checkpoint(str(values.get("student_id", "")))
    if student is not None and student.card and teacher is not None and teacher.card:
        cards = [CheckpointCard.model_validate(row.card) for row in (teacher, student)]
        ratio = compression(cards[0], cards[1])
        hints["student_id"] = (
            f"{number(ratio.compute, 1)}× less compute per token than the teacher" if ratio else ""
        )
        server = cards[0].server
        hints["teacher_id"] = f"Behind a server. {server.sentence}" if server else ""
    version = choices.version(str(values.get("dataset_version_id", "")))
    if version is not None and version.funnel:
        splits = version.funnel.get("splits", {})
        parts = ", ".join(f"{number(splits[s])} {s}" for s in SPLITS if splits.get(s))
        references = version.funnel.get("references", 0)
        hints["dataset_version_id"] = f"{parts}; {number(references)} with a reference"
    return hints


def _mass(cover: CacheOut | None) -> dict[str, str]:
    """Return what each temperature of the grid captures, to stand at the temperature's field."""
    if cover is None or not cover.captured_mass:
        return {}
    parts = [f"T = {t} captures {number(100 * m)} %" for t, m in cover.captured_mass.items()]
    return {"temperature": f"{', '.join(parts)} of the teacher's mass; the rest is one bucket."}
