"""Where a project stands: the six steps from teacher to evaluation, as `ui.pipeline` draws them."""

from dataclasses import dataclass, replace

from app.checkpoints.queries import CheckpointLine
from app.dashboard.facts import ProjectFacts
from app.dashboard.next_step import conversations, done_share, job_words, next_step
from app.metrics.formatting import compression, number, size
from app.specs.jobs import JobState
from app.teacher_cache.models import CacheCoverage
from app.web.filters import plural


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `tail` is its address below the project's."""

    key: str
    name: str
    status: str
    title: str
    text: str
    tail: str | None = None
    progress: float | None = None
    state: str = ""


def pipeline(facts: ProjectFacts, cache: CacheCoverage | None, cache_bytes: int) -> list[Step]:
    """Return the six steps; the one of the next action is `now`."""
    now = next_step(facts).part
    steps = [
        _checkpoint_step("teacher", "Teacher", facts.teacher, "not chosen"),
        _data_step(facts),
        _student_step(facts),
        _cache_step(facts, cache, cache_bytes),
        _runs_step(facts),
        _evaluation_step(facts),
    ]
    return [_placed(step, now) for step in steps]


def _placed(step: Step, now: str) -> Step:
    states = {"succeeded": "done", "failed": "hold", "open": "hold", "warn": "hold"}
    state = "now" if step.key == now else states.get(step.status, "")
    return replace(step, state=state)


def _checkpoint_step(key: str, name: str, line: CheckpointLine | None, missing: str) -> Step:
    if line is None:
        return Step(key, name, "todo", missing, "", "checkpoints")
    tail = f"checkpoints/{line.row.id}"
    if line.card is not None:
        card = line.card
        text = f"{number(card.depth)} × {number(card.width)}, {card.architecture}"
        text = card.server.sentence if card.server is not None else text
        return Step(key, name, "succeeded", line.row.name, text, tail)
    share = line.job.done_share if line.job is not None else None
    return Step(key, name, line.shown_state, line.row.name, line.message, tail, share)


def _student_step(facts: ProjectFacts) -> Step:
    step = _checkpoint_step("student", "Student", facts.student, "not made")
    found = facts.student.compression if facts.student is not None else None
    if found is None:
        return step
    return replace(step, text=f"{compression(found.compute)} less compute than the teacher")


def _data_step(facts: ProjectFacts) -> Step:
    view = facts.frozen or facts.draft
    if view is None:
        files = plural(facts.uploads, "file") if facts.uploads else ""
        text = f"{files} uploaded, not imported" if files else ""
        return Step("data", "Data", "todo", "none yet", text, "datasets")
    version = view.version
    title, tail = f"{version.dataset.name} v{version.number}", f"datasets/{version.id}"
    if version.state == "frozen":
        return Step("data", "Data", "succeeded", title, f"{conversations(view)}, frozen", tail)
    if view.busy:
        text = job_words(view.job) if view.job is not None else ""
        return Step("data", "Data", "running", title, text, tail, done_share(view.job))
    if version.state == "failed":
        return Step("data", "Data", "failed", title, version.error or "", tail)
    return Step("data", "Data", "todo", title, f"{conversations(view)}, a draft", tail)


def _cache_step(facts: ProjectFacts, cache: CacheCoverage | None, used: int) -> Step:
    """Say how much is captured: the first distilled run fills it, so it is never missing."""
    phase = facts.run.phase("precompute") if facts.run is not None and facts.run.alive else None
    if phase is not None and not JobState(phase.job.state).terminal:
        status = "running" if phase.job.state == JobState.RUNNING else phase.job.state
        share, words = done_share(phase.job), job_words(phase.job)
        return Step("cache", "Teacher cache", status, "being filled", words, None, share)
    if cache is not None and cache.conversations:
        share = cache.cached / cache.conversations
        rows = f"{number(cache.rows - cache.missing_rows)} tokens, {size(used)}"
        status = "succeeded" if share == 1 else "todo"
        title = f"{share * 100:.0f}\u00a0% of the data"
        return Step("cache", "Teacher cache", status, title, rows, "caches")
    return Step("cache", "Teacher cache", "todo", "empty", "the first run with a teacher fills it")


def _runs_step(facts: ProjectFacts) -> Step:
    view = facts.run
    if view is None:
        return Step("runs", "Runs", "todo", "none yet", "", "runs")
    title, tail = f"#{view.run.number} {view.run.name}", f"runs/{view.run.number}"
    if view.alive:
        phase = view.current
        text = job_words(phase.job) if phase is not None else view.state
        share = done_share(phase.job) if phase is not None else None
        return Step("runs", "Runs", view.state, title, text, tail, share)
    count = plural(facts.project.last_run_number, "run")
    if view.state == JobState.SUCCEEDED:
        return Step("runs", "Runs", "succeeded", title, f"{count} in all", tail)
    return Step("runs", "Runs", view.state, title, f"{view.state}; {count} in all", tail)


def _evaluation_step(facts: ProjectFacts) -> Step:
    verdict = facts.verdict
    if verdict is None:
        return Step("evaluation", "Evaluation", "todo", "no verdict yet", "", None)
    title = f"#{verdict.run} {verdict.name}"
    if verdict.difference is None:
        text = "evaluated; the teacher is not"
        return Step("evaluation", "Evaluation", "open", title, text, "compare")
    found = verdict.difference.verdict
    status = {"within": "succeeded", "outside": "failed"}.get(found, "open")
    text = {"within": "within tolerance", "outside": "outside tolerance"}.get(found, found)
    return Step("evaluation", "Evaluation", status, title, text, "compare")
