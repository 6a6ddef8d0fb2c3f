"""How long the phases of a run take, by what this installation's past jobs did."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.metrics.formatting import duration, number
from app.runs import queries
from app.runs.schemas import PartOut, Phase, Seconds

FEW_JOBS = 3
WIDER = 1.25
"""With fewer past jobs than FEW_JOBS a range reaches this factor beyond what was seen."""
SLOW = 10
"""Rates below it are told with one digit after the point."""
START = Seconds(low=5, middle=8, high=15)
"""What a job's process took to start, where that was measured: it loads torch. For the first."""


def spread(amount: float, rates: Sequence[float]) -> Seconds:
    """Return how long `amount` takes at past rates (amount per second): fastest to slowest.

    The middle is the median rate; fewer than three past jobs widen the range by a quarter.
    """
    return _widened(amount / max(rates), amount / median(rates), amount / min(rates), len(rates))


def _widened(low: float, middle: float, high: float, count: int) -> Seconds:
    wider = WIDER if count < FEW_JOBS else 1.0
    return Seconds(low=low / wider, middle=middle, high=high * wider)


@dataclass(frozen=True, slots=True)
class _Past:
    """One past job: of which checkpoint, how much it did a second, what it took besides."""

    checkpoint_id: int | None
    rate: float | None
    beside: float | None


def _past(session: Session, phase: Phase) -> list[_Past]:
    jobs = queries.past_jobs(session, phase)
    runs = {job.run_id for job in jobs if job.run_id is not None}
    students = queries.students_of(session, runs)
    return [
        _Past(
            job.checkpoint_id or students.get(job.run_id or 0),
            job.amount / job.seconds if job.amount and job.seconds else None,
            job.beside,
        )
        for job in jobs
    ]


def part(
    session: Session, phase: Phase, amount: float, checkpoint: Checkpoint | None, unit: str
) -> PartOut:
    """Estimate one phase from past jobs: of the same weights, else scaled by compute a token.

    A job starts, loads and saves besides, even where nothing is left for it to do.
    """
    past = _past(session, phase)
    same = [p for p in past if checkpoint is not None and p.checkpoint_id == checkpoint.id]
    start, start_basis = _start(same, past)
    if amount == 0:
        return PartOut(phase=phase, seconds=start, basis=f"Nothing is left to do; {start_basis}.")
    rates = [p.rate for p in same if p.rate is not None]
    if rates:
        basis = f"From {_jobs(len(rates))} of this checkpoint, {_rate(median(rates))} {unit}/s"
    else:
        rates = _scaled(session, past, checkpoint)
        basis = f"From {_jobs(len(rates))} of other checkpoints, scaled by compute per token"
    if not rates:
        return PartOut(
            phase=phase,
            seconds=None,
            basis="No past job of this kind on this installation to judge by.",
        )
    return PartOut(
        phase=phase, seconds=start + spread(amount, rates), basis=f"{basis}; {start_basis}."
    )


def _start(same: Sequence[_Past], past: Sequence[_Past]) -> tuple[Seconds, str]:
    """Return what a job takes beside its work, and where the number comes from."""
    of_any = [p.beside for p in past if p.beside is not None]
    seen = [p.beside for p in same if p.beside is not None] or of_any
    if not seen:
        words = f"{duration(START.middle)} to start is assumed, since no past job tells"
        return START, words
    found = _widened(min(seen), median(seen), max(seen), len(seen))
    return found, f"{duration(found.middle)} to start, load and save, as {_jobs(len(seen))} took"


def _rate(rate: float) -> str:
    return number(rate, 0 if rate >= SLOW else 1)


def _jobs(count: int) -> str:
    return "1 past job" if count == 1 else f"{count} past jobs"


def _scaled(session: Session, past: Sequence[_Past], checkpoint: Checkpoint | None) -> list[float]:
    """Return past rates as if this checkpoint had been used: half the compute, twice the rate."""
    if checkpoint is None or checkpoint.card is None:
        return []
    ids = {p.checkpoint_id for p in past if p.checkpoint_id is not None}
    rows = session.scalars(select(Checkpoint).where(Checkpoint.id.in_(ids))).all()
    compute = {row.id: row.card["parameters_compute"] for row in rows if row.card}
    compute = {number: count for number, count in compute.items() if count is not None}
    mine = checkpoint.card["parameters_compute"]
    if mine is None:
        return []
    return [
        p.rate * compute[p.checkpoint_id] / mine
        for p in past
        if p.rate is not None and p.checkpoint_id in compute
    ]


def in_all(parts: Sequence[PartOut]) -> Seconds | None:
    total = Seconds(low=0, middle=0, high=0)
    for part in parts:
        if part.seconds is None:
            return None
        total = total + part.seconds
    return total
