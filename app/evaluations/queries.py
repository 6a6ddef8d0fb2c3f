"""Read evaluations, their sums per cluster, and the groups and runs they belong to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import UnaryExpression

from app.checkpoints.models import Checkpoint
from app.datasets.models import Dataset, DatasetVersion
from app.evaluations.models import Evaluation, EvaluationMetric
from app.evaluations.schemas import EvaluationOut, MeasuredOut
from app.metrics.comparison import cell_of
from app.metrics.registry import METRICS
from app.metrics.statistics import ClusterSums
from app.runs import queries as runs
from app.runs.models import Run
from app.specs.jobs import TERMINAL_STATES, JobState

COMPARED = Run.role != "fine_tune"
"""A fine-tuned checkpoint is a teacher to be: it joins a comparison only by name."""


def one(session: Session, project_id: int, evaluation_id: int) -> Evaluation | None:
    return session.scalar(
        select(Evaluation).where(
            Evaluation.project_id == project_id, Evaluation.id == evaluation_id
        )
    )


def listing(project_id: int) -> Select[Evaluation, int | None, str, int]:
    """Return (evaluation, run's number, dataset's name, version's number); the caller orders."""
    return (
        select(Evaluation, Run.number, Dataset.name, DatasetVersion.number)
        .outerjoin(Run, Run.id == Evaluation.run_id)
        .join(DatasetVersion, DatasetVersion.id == Evaluation.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Evaluation.project_id == project_id)
    )


def listed(
    session: Session,
    project_id: int,
    *,
    state: str | None = None,
    ids: Sequence[int] | None = None,
    order: Sequence[UnaryExpression[Any]] = (Evaluation.id.desc(),),
    limit: int = 100,
) -> list[EvaluationOut]:
    """Return evaluations with every metric, newest first: two queries, however many."""
    statement = listing(project_id).order_by(*order).limit(limit)
    if state is not None:
        statement = statement.where(Evaluation.state == state)
    if ids is not None:
        statement = statement.where(Evaluation.id.in_(ids))
    return shown(session, session.execute(statement).all())


def shown(
    session: Session, rows: Sequence[Any], metrics: Collection[str] | None = None
) -> list[EvaluationOut]:
    """Return rows of `listing` with cells of all (or some) metrics."""
    sums = sums_of(session, [row[0].id for row in rows], metrics)
    return [
        EvaluationOut(
            id=e.id,
            name=e.name,
            role=e.role,
            run=run,
            checkpoint_id=e.checkpoint_id,
            state=e.state,
            set_name=f"{dataset}@{number}",
            set_key=e.set_key,
            spec=e.spec,
            conversations=e.conversations,
            seconds=e.seconds,
            created_at=e.created_at,
            job_id=e.job_id,
            cells={
                m: MeasuredOut(**asdict(cell_of(m, sums[e.id][m])))
                for m in METRICS
                if m in sums[e.id]
            },
        )
        for e, run, dataset, number in rows
    ]


def runs_called(
    session: Session, project_id: int, names: Collection[str], numbers: Collection[int]
) -> Sequence[Run]:
    """Return the runs of any of these names or numbers, newest first."""
    return session.scalars(
        select(Run)
        .where(Run.project_id == project_id, or_(Run.name.in_(names), Run.number.in_(numbers)))
        .order_by(Run.number.desc())
    ).all()


def runs_of_group(session: Session, project_id: int, group: str | None) -> Sequence[Run]:
    """Return a group's runs by number; None: those without a group."""
    same = Run.group.is_(None) if group is None else Run.group == group
    return session.scalars(
        select(Run).where(Run.project_id == project_id, same, COMPARED).order_by(Run.number)
    ).all()


def last_group(session: Session, project_id: int, *, finished: bool) -> tuple[str | None] | None:
    """Return the group (in a tuple: it may be None) of the newest run.

    A named group counts before the runs without one: they were not started to be compared.
    `finished`: of the newest group whose runs have all ended and one of which is evaluated.
    """
    of_project = (Run.project_id == project_id, COMPARED)
    statement = select(Run.group).where(*of_project).group_by(Run.group)
    if finished:
        states = runs.states(select(Run.id).where(*of_project))
        state = func.coalesce(states.c.state, JobState.CANCELLED.value)
        statement = (
            statement.outerjoin(states, states.c.run_id == Run.id)
            .outerjoin(Evaluation, Evaluation.run_id == Run.id)
            .having(func.bool_and(state.in_(sorted(TERMINAL_STATES))))
            .having(func.bool_or(Evaluation.state == "done"))
        )
    order = (Run.group.is_(None), func.max(Run.number).desc())
    row = session.execute(statement.order_by(*order).limit(1)).first()
    return None if row is None else (row[0],)


def states_of(session: Session, run_ids: Collection[int]) -> dict[int, str]:
    """Return run id → state."""
    found = runs.states(select(Run.id).where(Run.id.in_(run_ids)))
    rows = session.execute(select(found.c.run_id, found.c.state))
    return {row.run_id: row.state for row in rows}


def evaluations_of(session: Session, run_ids: Collection[int]) -> Sequence[Evaluation]:
    """Return the evaluations of some runs, newest first."""
    return session.scalars(
        select(Evaluation).where(Evaluation.run_id.in_(run_ids)).order_by(Evaluation.id.desc())
    ).all()


def evaluations_by_id(
    session: Session, project_id: int, ids: Collection[int]
) -> Sequence[Evaluation]:
    return session.scalars(
        select(Evaluation).where(Evaluation.project_id == project_id, Evaluation.id.in_(ids))
    ).all()


def runs_by_id(session: Session, run_ids: Collection[int]) -> dict[int, Run]:
    return {run.id: run for run in session.scalars(select(Run).where(Run.id.in_(run_ids)))}


def of_set(session: Session, project_id: int, set_key: str) -> Sequence[Evaluation]:
    """Return what is done on a set: teacher, undistilled students, then runs, oldest first."""
    return session.scalars(
        select(Evaluation)
        .where(
            Evaluation.project_id == project_id,
            Evaluation.set_key == set_key,
            Evaluation.state == "done",
        )
        .order_by(Evaluation.run_id.is_not(None), Evaluation.role, Evaluation.id)
    ).all()


def set_names(session: Session, version_ids: Collection[int]) -> dict[int, str]:
    """Return version id → “dataset@number”."""
    rows = session.execute(
        select(DatasetVersion.id, Dataset.name, DatasetVersion.number)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(DatasetVersion.id.in_(version_ids))
    )
    return {version_id: f"{name}@{number}" for version_id, name, number in rows}


def evaluated_runs(session: Session, project_id: int, *, limit: int = 300) -> Sequence[Run]:
    """Return the newest runs that have been evaluated: what may be added to a comparison."""
    evaluated = select(Evaluation.run_id).where(
        Evaluation.project_id == project_id, Evaluation.state == "done"
    )
    return session.scalars(
        select(Run)
        .where(Run.project_id == project_id, Run.id.in_(evaluated))
        .order_by(Run.number.desc())
        .limit(limit)
    ).all()


def checkpoints_of(session: Session, ids: Collection[int | None]) -> dict[int, Checkpoint]:
    rows = session.scalars(select(Checkpoint).where(Checkpoint.id.in_({i for i in ids if i})))
    return {row.id: row for row in rows}


def sums_of(
    session: Session, evaluation_ids: Collection[int], metrics: Collection[str] | None = None
) -> Mapping[int, dict[str, ClusterSums]]:
    """Return evaluation id → metric → sums over all conversations, in one query."""
    statement = select(EvaluationMetric).where(
        EvaluationMetric.evaluation_id.in_(evaluation_ids), EvaluationMetric.slice == "all"
    )
    if metrics is not None:
        statement = statement.where(EvaluationMetric.metric.in_(metrics))
    sums: dict[int, dict[str, ClusterSums]] = {e: {} for e in evaluation_ids}
    for metric in session.scalars(statement):
        sums[metric.evaluation_id][metric.metric] = ClusterSums(
            np.frombuffer(metric.sums, np.float64),
            np.frombuffer(metric.counts, np.float64),
            metric.n,
            metric.excluded,
            metric.paired,
        )
    return sums
