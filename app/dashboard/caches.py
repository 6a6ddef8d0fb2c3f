"""The teacher cache as people see it: what each part holds, who uses it, and its removal."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import Dataset, DatasetVersion
from app.errors import Conflict, NotFound
from app.jobs.models import Job
from app.projects.models import Project
from app.runs.models import Run, RunJob
from app.specs.jobs import TERMINAL_STATES, JobKind, JobState
from app.specs.teacher import CacheReport, CacheSpace
from app.teacher_cache import queries, service
from app.teacher_cache.models import CacheCoverage, CacheSpaceRow
from app.teacher_cache.queries import SpaceSize

WEIGHTS: ColumnElement[str] = CacheSpaceRow.spec["weights_fingerprint"].as_string()
_REPORT = Job.result["report"]


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of a dataset version lies in a cache, as the last capture of it found."""

    version_id: int
    name: str
    conversations: int
    cached: int


@dataclass(frozen=True, slots=True)
class CacheLine:
    """One cache: a teacher's rows under one profile."""

    space: CacheSpace
    teacher: str
    teacher_id: int
    """The project's own checkpoint with these weights."""
    size: SpaceSize
    report: CacheReport | None
    covered: tuple[Covered, ...]
    runs: tuple[tuple[int, str], ...]
    """(number, name) of the project's runs that read it, the newest first."""
    asked_rows: int
    """Rows that runs needed, each run counted."""
    scored_rows: int
    """Those of them that were not there yet."""
    used_at: datetime | None

    @property
    def address(self) -> str:
        return self.space.address

    @property
    def hit_rate(self) -> float | None:
        """Share of the rows asked for that need not be scored again."""
        return 1 - self.scored_rows / self.asked_rows if self.asked_rows else None


def lines(session: Session, project: Project) -> list[CacheLine]:
    """Return the caches of a project's teachers, the largest first, in a fixed number of queries.

    A cache belongs to weights, so projects whose teachers have the same weights share it.
    """
    rows = session.execute(
        select(CacheSpaceRow, func.min(Checkpoint.id))
        .join(Checkpoint, Checkpoint.weights_fingerprint == WEIGHTS)
        .where(Checkpoint.project_id == project.id)
        .group_by(CacheSpaceRow.address)
    ).all()
    names = _names(session, [teacher for _, teacher in rows])
    sizes = queries.sizes(session)
    covered, runs, asked = _covered(session, project), _runs(session, project), _asked(session)
    found = []
    for row, teacher_id in rows:
        asked_rows, scored, used_at = asked.get(row.address, (0, 0, None))
        found.append(
            CacheLine(
                space=CacheSpace.model_validate(row.spec),
                teacher=names[teacher_id],
                teacher_id=teacher_id,
                size=sizes.get(row.address, SpaceSize(0, 0, 0)),
                report=CacheReport.model_validate(row.report) if row.report else None,
                covered=tuple(covered.get(row.address, ())),
                runs=tuple(runs.get(row.address, ())),
                asked_rows=asked_rows,
                scored_rows=scored,
                used_at=used_at,
            )
        )
    return sorted(found, key=lambda line: (-line.size.bytes, line.address))


def remove(session: Session, project: Project, address: str) -> None:
    """Forget a cache of the project's teachers.

    The caller commits, then lets `teacher_cache.service.drop_files` remove its files.
    Errors: NotFound; Conflict where an open job reads or fills it.
    """
    line = next((line for line in lines(session, project) if line.address == address), None)
    if line is None:
        raise NotFound(f"{project.name} has no teacher cache {address[:12]}.")
    title = session.scalar(
        select(Job.title).where(_open_with(line.space.weights_fingerprint)).limit(1)
    )
    if title is not None:
        raise Conflict(
            f"The cache of {line.teacher} is in use by the job “{title}”. Wait for it, or cancel "
            "it first."
        )
    service.remove_space(session, address)


def _open_with(fingerprint: str) -> ColumnElement[bool]:
    """Whether a job is open that reads or writes rows of a teacher with these weights."""
    teachers = select(Checkpoint.id).where(Checkpoint.weights_fingerprint == fingerprint)
    return and_(
        Job.state.not_in(TERMINAL_STATES),
        or_(
            and_(Job.kind == JobKind.PRECOMPUTE, Job.spec["teacher_id"].as_integer().in_(teachers)),
            and_(
                Job.kind == JobKind.TRAIN,
                Job.spec["run"]["teacher_id"].as_integer().in_(teachers),
            ),
        ),
    )


def _names(session: Session, ids: Sequence[int]) -> Mapping[int, str]:
    rows = session.execute(select(Checkpoint.id, Checkpoint.name).where(Checkpoint.id.in_(ids)))
    return dict(rows.all())


def _covered(session: Session, project: Project) -> Mapping[str, list[Covered]]:
    rows = session.execute(
        select(
            CacheCoverage.space,
            DatasetVersion.id,
            Dataset.name,
            DatasetVersion.number,
            func.max(CacheCoverage.conversations),
            func.max(CacheCoverage.cached),
        )
        .join(DatasetVersion, DatasetVersion.id == CacheCoverage.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Dataset.project_id == project.id)
        .group_by(CacheCoverage.space, DatasetVersion.id, Dataset.name, DatasetVersion.number)
        .order_by(Dataset.name, DatasetVersion.number)
    )
    found: dict[str, list[Covered]] = defaultdict(list)
    for space, version, name, number, conversations, cached in rows:
        found[space].append(Covered(version, f"{name}@{number}", conversations, cached))
    return found


def _runs(session: Session, project: Project) -> Mapping[str, list[tuple[int, str]]]:
    rows = session.execute(
        select(Job.result["address"].as_string(), Run.number, Run.name)
        .join(RunJob, RunJob.job_id == Job.id)
        .join(Run, Run.id == RunJob.run_id)
        .where(
            Run.project_id == project.id,
            RunJob.role == "precompute",
            Job.state == JobState.SUCCEEDED,
        )
        .distinct()
        .order_by(Run.number.desc())
    )
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for address, number, name in rows:
        found[address].append((number, name))
    return found


def _asked(session: Session) -> Mapping[str, tuple[int, int, datetime | None]]:
    """Return per cache the rows runs asked for, those that were scored for it, and the last time.

    Every run that waited for a capture asked for its rows; the parts of a shared capture score what
    the job after them was asked for.
    """
    address = Job.result["address"].as_string()
    readers = select(func.count()).where(RunJob.job_id == Job.id).correlate(Job).scalar_subquery()
    whole = Job.spec["part"].as_string().is_(None)
    rows = session.execute(
        select(
            address,
            func.sum(_REPORT["rows"].as_integer() * func.greatest(readers, 1)).filter(whole),
            func.sum(_REPORT["new_rows"].as_integer()),
            func.max(Job.ended_at),
        )
        .where(Job.kind == JobKind.PRECOMPUTE, Job.state == JobState.SUCCEEDED)
        .group_by(address)
    )
    return {name: (int(asked or 0), int(new), at) for name, asked, new, at in rows}
