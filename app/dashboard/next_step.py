"""The one next action of a project: the first thing that is missing, in words."""

from collections.abc import Callable
from dataclasses import dataclass

from app.checkpoints.queries import CheckpointLine
from app.dashboard.facts import ProjectFacts
from app.datasets.queries import VersionView
from app.jobs.models import Job
from app.jobs.queries import progress_words
from app.specs.jobs import JobState
from app.web.filters import plural


@dataclass(frozen=True, slots=True)
class NextStep:
    """The one thing to do now. `part` is the pipeline step it belongs to."""

    part: str
    state: str
    """What the list of projects says: a status word, then words."""
    words: str
    title: str
    text: str
    tail: str
    """Address below the project's."""
    label: str


def done_share(job: Job | None) -> float | None:
    progress = job.progress if job is not None else None
    if not progress or not progress.get("total"):
        return None
    return min(1.0, float(progress["done"]) / float(progress["total"]))


def job_words(job: Job) -> str:
    """Return such as `train, 612 of 1,014 steps`."""
    phase = (job.phase or job.state).replace("_", " ")
    progress = job.progress
    return f"{phase}, {progress_words(progress)}" if progress and progress.get("total") else phase


def conversations(view: VersionView) -> str:
    funnel = view.funnel
    return plural(funnel.conversations, "conversation") if funnel else "Its conversations"


def next_step(facts: ProjectFacts) -> NextStep:
    """Return what to do now: the first thing that is missing, in the order of the pipeline."""
    for rule in _RULES:
        found = rule(facts)
        if found is not None:
            return found
    return _compare(facts)


def _teacher(facts: ProjectFacts) -> NextStep | None:
    teacher = facts.teacher
    if teacher is None:
        ready = [c for c in facts.checkpoints if c.state == "ready"]
        if ready:
            return NextStep(
                "teacher",
                "todo",
                "needs a teacher",
                "Choose the teacher",
                f"{plural(len(ready), 'checkpoint is', 'checkpoints are')} ready. Say which one's "
                "answers were logged.",
                "edit",
                "Choose the teacher",
            )
        return NextStep(
            "teacher",
            "todo",
            "needs a teacher",
            "Register the teacher",
            "The teacher is the large checkpoint whose answers you log. Name its folder or its hub "
            "repository; a job copies it and reads its card.",
            "checkpoints/new",
            "Register the teacher",
        )
    if teacher.state in ("failed", "cancelled"):
        return NextStep(
            "teacher",
            "failed",
            "teacher has no weights",
            "Mend the teacher",
            teacher.message or "It was cancelled.",
            f"checkpoints/{teacher.row.id}",
            "Look at the teacher",
        )
    return None


def _data(facts: ProjectFacts) -> NextStep | None:
    if facts.frozen is not None:
        return None
    draft = facts.draft
    if draft is None:
        return _no_data(facts)
    name = f"{draft.version.dataset.name} v{draft.version.number}"
    tail = f"datasets/{draft.version.id}"
    if draft.busy:
        doing = "Freezing" if draft.freezing else "Importing"
        text = f"{doing} {name} goes on by itself: {job_words(draft.job) if draft.job else ''}."
        return NextStep(
            "data", "running", "importing", f"Watch {name}", text, tail, "Open the dataset"
        )
    if draft.version.state == "failed":
        return NextStep(
            "data",
            "failed",
            "import failed",
            f"Mend {name}",
            draft.version.error or "The import ended without a result.",
            tail,
            "Look at the import",
        )
    return NextStep(
        "data",
        "todo",
        "data to freeze",
        f"Look over {name}, then freeze it",
        f"{conversations(draft)} were imported. Runs use frozen versions only, so that every "
        "figure can be made again.",
        tail,
        "Look over the data",
    )


def _no_data(facts: ProjectFacts) -> NextStep:
    waits = "The teacher is being registered meanwhile. " if _waits(facts.teacher) else ""
    if facts.uploads:
        files = plural(facts.uploads, "file is", "files are")
        return NextStep(
            "data",
            "todo",
            "data to import",
            "Import the log",
            f"{waits}{files} uploaded. Look at what was detected, name the reference if there is "
            "one, and import.",
            "datasets/new",
            "Import the log",
        )
    return NextStep(
        "data",
        "todo",
        "waiting for data",
        "Upload a log of the teacher's traffic",
        f"{waits}Requests and answers as your service logged them: OpenAI chat logs, fine-tune "
        "JSONL, or a CSV of prompts and completions.",
        "datasets/new",
        "Upload a log",
    )


def _student(facts: ProjectFacts) -> NextStep | None:
    student, teacher = facts.student, facts.teacher
    if student is None:
        if _waits(teacher) and teacher is not None:
            return _wait_for(teacher, "teacher", "The student is cut out of it.")
        return NextStep(
            "student",
            "todo",
            "needs a student",
            "Cut the student out of the teacher",
            "Keep a part of its layers or channels: 5 to 20 times less compute is where "
            "distillation pays. A small checkpoint with the same tokenizer does too.",
            "checkpoints/new?way=prune",
            "Cut a student",
        )
    if student.state in ("failed", "cancelled"):
        return NextStep(
            "student",
            "failed",
            "student has no weights",
            "Mend the student",
            student.message or "It was cancelled.",
            f"checkpoints/{student.row.id}",
            "Look at the student",
        )
    for line, part in ((teacher, "teacher"), (student, "student")):
        if line is not None and _waits(line):
            return _wait_for(line, part, "The first run can start when it is ready.")
    return None


def _wait_for(line: CheckpointLine, part: str, then: str) -> NextStep:
    return NextStep(
        part,
        "running",
        f"{part} in the making",
        f"Wait for {line.row.name}",
        f"{line.message or 'Its job waits for a worker.'} {then}",
        f"checkpoints/{line.row.id}",
        f"Watch the {part}",
    )


def _waits(line: CheckpointLine | None) -> bool:
    return line is not None and line.alive


def _run(facts: ProjectFacts) -> NextStep | None:
    view = facts.run
    if view is None:
        name = facts.frozen.version.dataset.name if facts.frozen else "the data"
        return NextStep(
            "runs",
            "todo",
            "ready for a run",
            "Start the first run",
            f"Teacher, student and {name} are there. Presets fill the form; it says what the run "
            "needs before you start it.",
            "runs/new",
            "New run",
        )
    title = f"#{view.run.number} {view.run.name}"
    tail = f"runs/{view.run.number}"
    if view.alive:
        phase = view.current
        words = job_words(phase.job) if phase is not None else view.state
        return NextStep(
            "runs",
            "running" if view.state != JobState.QUEUED else "queued",
            f"run #{view.run.number} {view.state}",
            f"Watch {title}",
            f"{words[:1].upper()}{words[1:]}. It is evaluated by itself when it has trained.",
            tail,
            "Open the run",
        )
    if view.state == JobState.FAILED:
        job = view.failure
        return NextStep(
            "runs",
            "failed",
            f"run #{view.run.number} failed",
            f"Mend {title}",
            (job.error_message if job is not None else None) or "It ended without a result.",
            tail,
            "Look at the run",
        )
    if facts.verdict is None:
        ended = "was cancelled" if view.state == JobState.CANCELLED else "made a checkpoint"
        return NextStep(
            "runs",
            "todo",
            "no verdict yet",
            "Start a run",
            f"{title} {ended}; nothing has been evaluated yet, so there is no verdict.",
            "runs/new",
            "New run",
        )
    return None


def _compare(facts: ProjectFacts) -> NextStep:
    verdict = facts.verdict
    if verdict is None:
        raise ValueError("the rules before leave no project without a verdict")
    found = verdict.difference.verdict if verdict.difference is not None else "not compared"
    if found == "within":
        text = "It may be good enough to ship: read its answers beside the teacher's first."
        return _last("succeeded", "within tolerance", f"Read the report of {verdict.name}", text)
    if found == "outside":
        text = "Change what the student sees or how large it is; the comparison tells what helped."
        return _last("warn", "needs a decision", f"{verdict.name} is not good enough yet", text)
    if found in ("not proven", "too few"):
        text = "The test split is too small for a verdict, or the student is near the border."
        return _last("open", "not proven", f"Look where {verdict.name} differs", text)
    text = "The teacher has no evaluation on its set, so there is no verdict."
    return _last("open", "not compared", "Compare the runs", text)


def _last(state: str, words: str, title: str, text: str) -> NextStep:
    return NextStep("evaluation", state, words, title, text, "compare", "Compare the runs")


_RULES: tuple[Callable[[ProjectFacts], NextStep | None], ...] = (_teacher, _data, _student, _run)
