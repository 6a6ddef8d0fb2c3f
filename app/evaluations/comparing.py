"""Compare: choose rows, take for each the evaluation on the common set, tell them apart."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from sqlalchemy.orm import Session

from app.errors import NotFound
from app.evaluations import queries
from app.evaluations.models import Evaluation
from app.evaluations.schemas import Choice
from app.metrics.comparison import Comparison, EvaluationRole, EvaluationRow, compare
from app.projects.models import Project
from app.projects.service import shown_tolerance
from app.runs.models import Run
from app.specs.jobs import JobState
from app.specs.training import RunSpec

_LONGEST_NUMBER = 10


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A chosen row: measured, still to come, or left out of the comparison."""

    name: str
    role: str
    run: Run | None
    state: str
    """Of the run; of the evaluation where there is no run."""
    evaluation: Evaluation | None
    """Where one is done."""

    @property
    def key(self) -> str:
        """Return what addresses call the row: a run's number, or `e` and an evaluation's id."""
        if self.run is not None:
            return str(self.run.number)
        return f"e{self.evaluation.id}" if self.evaluation else self.name


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison and the rows that were asked for, also those that are not in it."""

    comparison: Comparison
    rows: tuple[ComparedRow, ...]
    """The set's teacher and undistilled students first, then runs as chosen."""
    set_name: str | None

    def row(self, name: str) -> ComparedRow | None:
        return next((r for r in self.rows if r.name == name), None)


def compare_chosen(session: Session, project: Project, choice: Choice) -> Comparison:
    """Return the comparison of what is chosen. NotFound where nothing of it has been evaluated."""
    compared = compare_rows(session, project, choice)
    if not compared.comparison.rows:
        raise NotFound(
            "There is nothing to compare yet: no group of runs has ended with an evaluation. "
            "Name runs to compare those that are evaluated."
            if choice.is_empty
            else "Nothing of this has been evaluated yet. A run is evaluated once it is trained."
        )
    return compared.comparison


def compare_rows(
    session: Session, project: Project, choice: Choice, *, unfinished: bool = False
) -> Compared:
    """Choose rows, take for each the evaluation on the common set, and compare.

    Their set's teacher and the runs' undistilled students come along. NotFound for a name or
    number that the project does not have. `unfinished`: without a choice and a finished group the
    newest one is taken as it stands.
    """
    chosen_runs = _chosen_runs(session, project.id, choice, unfinished=unfinished)
    asked = _chosen_evaluations(session, project.id, choice)
    made = queries.evaluations_of(session, [run.id for run in chosen_runs])
    finished = [e for e in made if e.state == "done"]
    key = _common_set([*asked, *_newest_of_each_run(finished)])
    owners = queries.runs_by_id(session, {e.run_id for e in asked if e.run_id is not None})
    students = {run.student_id for run in (*chosen_runs, *owners.values())}
    anchors = _anchors(session, project.id, key, students)
    known = {e.id for e in anchors}
    rows = [
        ComparedRow(
            e.name,
            e.role,
            owners.get(e.run_id or 0),
            e.state,
            e if e.state == "done" else None,
        )
        for e in (*anchors, *(e for e in asked if e.id not in known))
    ]
    states = queries.states_of(session, [run.id for run in chosen_runs])
    for run in chosen_runs:
        own = [e for e in finished if e.run_id == run.id]
        best = next((e for e in own if e.set_key == key), own[0] if own else None)
        state = states.get(run.id, JobState.CANCELLED.value)
        rows.append(ComparedRow(run.name, run.role, run, state, best))
    rows = _told_apart(session, rows)
    return _compared(session, project, rows, choice.baseline, key)


def _compared(
    session: Session,
    project: Project,
    rows: list[ComparedRow],
    baseline: str | None,
    key: str | None,
) -> Compared:
    measured = [row for row in rows if row.evaluation is not None]
    # The common set leads: what is not on it is left out, whichever row comes first.
    measured.sort(key=lambda row: row.evaluation is not None and row.evaluation.set_key != key)
    names = queries.set_names(
        session, {r.evaluation.dataset_version_id for r in measured if r.evaluation}
    )
    try:
        comparison = compare(
            _evaluation_rows(session, measured, names),
            deciding_metric=project.deciding_metric,
            tolerance=shown_tolerance(project),
            baseline=_named(rows, baseline) if baseline else None,
        )
    except ValueError as error:
        raise NotFound(f"{error}.") from error
    first = next((r.evaluation for r in measured if r.evaluation), None)
    set_name = names.get(first.dataset_version_id) if first else None
    return Compared(comparison, tuple(rows), set_name)


def _evaluation_rows(
    session: Session, rows: Sequence[ComparedRow], names: Mapping[int, str]
) -> list[EvaluationRow]:
    done_ones = [(row, row.evaluation) for row in rows if row.evaluation is not None]
    sums = queries.sums_of(session, [e.id for _, e in done_ones])
    specs = {
        row.run.id: RunSpec.model_validate(row.run.spec)
        for row in rows
        if row.run is not None and row.state == JobState.SUCCEEDED
    }
    return [
        EvaluationRow(
            row.name,
            cast("EvaluationRole", row.role),
            sums[e.id],
            e.dataset_version_id,
            f"{e.set_key}:{e.clusters_sha256}",
            names.get(e.dataset_version_id, ""),
            recipe=spec.recipe if spec else None,
            seed=spec.training.seed if spec else None,
        )
        for row, e in done_ones
        for spec in [specs.get(row.run.id) if row.run else None]
    ]


def _chosen_runs(
    session: Session, project_id: int, choice: Choice, *, unfinished: bool
) -> Sequence[Run]:
    """Return the chosen runs in the order asked for; without any choice the last group's."""
    if choice.runs:
        numbers = {n: _number(n) for n in choice.runs}
        wanted = {n for n in numbers.values() if n is not None}
        found = queries.runs_called(session, project_id, set(choice.runs), wanted)
        chosen = [_called(found, name, numbers[name]) for name in choice.runs]
        return list(dict.fromkeys(chosen))
    if choice.evaluations:
        return ()
    if choice.group is not None:
        return queries.runs_of_group(session, project_id, choice.group)
    last = queries.last_group(session, project_id, finished=True)
    if last is None and unfinished:
        last = queries.last_group(session, project_id, finished=False)
    return queries.runs_of_group(session, project_id, last[0]) if last else ()


def _number(name: str) -> int | None:
    text = name.removeprefix("#")
    return int(text) if text.isdecimal() and len(text) < _LONGEST_NUMBER else None


def _called(found: Sequence[Run], name: str, number: int | None) -> Run:
    """Return the newest run of that name, else the run of that number."""
    by_name = next((run for run in found if run.name == name), None)
    run = by_name or next((run for run in found if run.number == number), None)
    if run is None:
        raise NotFound(f"There is no run “{name}” in this project.")
    return run


def _chosen_evaluations(session: Session, project_id: int, choice: Choice) -> list[Evaluation]:
    found = {
        e.id: e for e in queries.evaluations_by_id(session, project_id, set(choice.evaluations))
    }
    missing = [i for i in choice.evaluations if i not in found]
    if missing:
        raise NotFound(f"There is no evaluation {missing[0]} in this project.")
    return [found[i] for i in dict.fromkeys(choice.evaluations)]


def _newest_of_each_run(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return list({e.run_id: e for e in reversed(evaluations)}.values())


def _anchors(
    session: Session, project_id: int, key: str | None, students: set[int | None]
) -> list[Evaluation]:
    """Return the set's teacher, and its undistilled students from which a chosen run started."""
    if key is None:
        return []
    found = queries.of_set(session, project_id, key)
    return [
        e
        for e in found
        if e.run_id is None and (e.role == "teacher" or e.checkpoint_id in students)
    ]


def _common_set(evaluations: Sequence[Evaluation]) -> str | None:
    """Return the set most of the rows are measured on; of equal ones the newest."""
    newest: dict[str, int] = {}
    for e in evaluations:
        newest[e.set_key] = max(newest.get(e.set_key, 0), e.id)
    counts = Counter(e.set_key for e in evaluations)
    return max(counts, key=lambda key: (counts[key], newest[key]), default=None)


def _told_apart(session: Session, rows: Sequence[ComparedRow]) -> list[ComparedRow]:
    """Give rows of one name a number or their checkpoint's name beside it."""
    counts = Counter(row.name for row in rows)
    doubled = [row for row in rows if counts[row.name] > 1]
    ids = {r.evaluation.checkpoint_id for r in doubled if r.evaluation and r.run is None}
    made = queries.checkpoints_of(session, ids) if ids else {}
    told = []
    for row in rows:
        if counts[row.name] > 1 and row.run is not None:
            row = replace(row, name=f"{row.name} #{row.run.number}")  # noqa: PLW2901
        elif counts[row.name] > 1 and row.evaluation is not None:
            checkpoint = made.get(row.evaluation.checkpoint_id or 0)
            words = checkpoint.name if checkpoint else f"evaluation {row.evaluation.id}"
            row = replace(row, name=f"{row.name} ({words})")  # noqa: PLW2901
        told.append(row)
    return told


def _named(rows: Sequence[ComparedRow], wanted: str) -> str:
    """Return the name of the row that `wanted` names or whose key it is."""
    for row in rows:
        if wanted == row.name:
            return row.name
    key = wanted.removeprefix("#")
    return next((row.name for row in rows if row.key == key), wanted)
