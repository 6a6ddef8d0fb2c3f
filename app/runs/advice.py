"""Before a run starts: what forbids it, what to mend, what it will read, take and last."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.datasets.queries import text_sizes
from app.metrics.formatting import number, size
from app.runs import queries
from app.runs.coverage import cover as cover_of
from app.runs.schemas import CacheOut, EstimateOut, Mend, PartOut, Phase, Seconds
from app.settings import Settings
from app.specs.checkpoint import BAND, CheckpointCard, compression, verdict_of_cards
from app.specs.conversation import ImportFunnel
from app.specs.teacher import CacheReport
from app.specs.training import RunSpec
from app.storage.blobs import LocalBlobs
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of

CHARACTERS_A_TOKEN = 4.0
TOKENS_A_MESSAGE = 5.0
"""Role and border tokens of a chat template."""
STANDARD_BYTES_A_ROW = 67.0
"""What the standard profile is held to; used until this installation has shards of its own."""
SNAPSHOT_WEIGHTS = 3
"""A snapshot holds the weights and two moments of the optimiser, in float32."""
SNAPSHOTS_KEPT = 3
FLOAT32_BYTES = 4
FEW_JOBS = 3
WIDER = 1.25
"""With fewer past jobs than FEW_JOBS a range reaches this factor beyond what was seen."""
MANY_EPOCHS = 60
SLOW = 10
"""Rates below it are told with one digit after the point."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The rows a spec names."""

    version: DatasetVersion
    student: Checkpoint
    teacher: Checkpoint | None

    @property
    def funnel(self) -> ImportFunnel | None:
        found = self.version.funnel
        return None if found is None else ImportFunnel.model_validate(found)

    def split(self, name: str) -> int:
        return self.funnel.splits.get(name, 0) if self.funnel else 0

    @property
    def cards(self) -> tuple[CheckpointCard | None, CheckpointCard]:
        """Teacher's and student's; only of a subject whose checkpoints are ready."""
        teacher = self.teacher.card if self.teacher else None
        return (
            CheckpointCard.model_validate(teacher) if teacher else None,
            CheckpointCard.model_validate(self.student.card),
        )


@dataclass(slots=True)
class Findings:
    """Why a run cannot start (with what would mend it), and what to know before it does."""

    blocked: str | None = None
    mends: list[Mend] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def block(self, sentence: str, *mends: Mend) -> None:
        """Keep the first reason only: mending it may take away the others."""
        if self.blocked is None:
            self.blocked, self.mends = sentence, list(mends)


SEQUENCE_LEVEL = Mend(
    label="Use sequence-level",
    values={"kind": "ce", "alpha": "0", "ce_target": "logged"},
)


def look(session: Session, subject: Subject, spec: RunSpec, project_id: int) -> Findings:
    """Return what forbids the spec and what is worth a warning."""
    found = Findings()
    _look_at_rows(found, subject, spec)
    if found.blocked is not None:
        return found
    _look_at_weights(found, subject, spec)
    _look_at_data(found, subject, spec)
    _look_at_teacher(session, found, subject, spec)
    _look_at_sizes(found, subject, spec)
    _look_at_schedule(found, subject, spec)
    twin = queries.name_in_group(session, project_id, spec.name, spec.group)
    if twin is not None and spec.group is not None:
        found.block(
            f"Run #{twin.number} of group “{spec.group}” is called “{spec.name}” already, and a "
            "table could not tell the two apart. Choose another name."
        )
    return found


def _look_at_rows(found: Findings, subject: Subject, spec: RunSpec) -> None:
    version = subject.version
    if version.state != "frozen":
        found.block(f"The dataset version is {version.state}: freeze it before a run uses it.")
    for checkpoint in (subject.student, subject.teacher):
        if checkpoint is not None and (checkpoint.state != "ready" or checkpoint.card is None):
            mend = "Wait for its job" if checkpoint.state == "registering" else "Register it again"
            found.block(f"“{checkpoint.name}” is {checkpoint.state}. {mend}.")
    if spec.training.objective.needs_teacher and subject.teacher is None:
        sentence = (
            "An objective with a teacher term needs a teacher: choose one, or set alpha to 0."
        )
        found.block(sentence, SEQUENCE_LEVEL)


def _look_at_weights(found: Findings, subject: Subject, spec: RunSpec) -> None:
    if subject.teacher is not None and subject.teacher.id == subject.student.id:
        found.block(
            "Teacher and student are one checkpoint: it would learn what it does already. Choose "
            "a smaller student, or make one from the teacher."
        )
    depth, top = subject.cards[1].depth, spec.training.trainable.top_layers
    if top is not None and top > depth:
        found.block(f"The student has {depth} layers: train at most so many, or leave it empty.")


def _look_at_data(found: Findings, subject: Subject, spec: RunSpec) -> None:
    funnel = subject.funnel
    if funnel is None:
        return
    if not subject.split("train"):
        found.block("The version has no training conversations. Import it with smaller shares.")
    if spec.training.objective.ce_target == "reference" and not funnel.references:
        found.block(
            "No conversation of this version has a reference, so there is nothing to train labels "
            "only on. Import with a reference column, or train on the logged answers.",
            Mend(label="Train on logged answers", values={"ce_target": "logged"}),
        )
    wanted = spec.evaluation.split
    if not subject.split(wanted):
        other = next((s for s in ("test", "validation") if subject.split(s)), None)
        mends = [Mend(label=f"Evaluate on {other}", values={"split": other})] if other else []
        found.block(f"The {wanted} split has no conversations to evaluate on.", *mends)
    if spec.evaluation.truth == "reference" and not funnel.references:
        found.block(
            "The evaluation asks for references, and no conversation of this version has one.",
            Mend(label="Compare with logged answers", values={"truth": "auto"}),
        )
    if not subject.split("validation"):
        found.warnings.append(
            "The version has no validation conversations: the last weights are kept, not the best."
        )
    if wanted == "train":
        found.warnings.append(
            "Evaluating on training conversations shows what was learned by heart."
        )


def _look_at_teacher(session: Session, found: Findings, subject: Subject, spec: RunSpec) -> None:
    teacher, student = subject.cards
    objective = spec.training.objective
    if teacher is None or subject.teacher is None:
        return
    verdict = verdict_of_cards(teacher, student)
    if not objective.needs_teacher:
        return
    if not verdict.logits_allowed:
        pair = (
            f"“{subject.student.name}” cannot learn from “{subject.teacher.name}” token by token."
        )
        found.block(f"{pair} {verdict.sentence}", SEQUENCE_LEVEL)
    grid = spec.capture.temperatures
    if objective.temperature not in grid:
        shown = ", ".join(f"{t:g}" for t in grid)
        found.block(
            f"Temperature {objective.temperature:g} is not in the cache's grid ({shown}): its "
            "normaliser is not stored. Take one of these, or add it to the grid.",
            Mend(label="Use temperature 1", values={"temperature": "1"}),
        )
    elif objective.temperature > 1:
        report = cache.report(session, space_of(teacher, spec.capture).address)
        found.warnings.append(_mass_sentence(objective.temperature, report))


def _mass_sentence(temperature: float, report: CacheReport | None) -> str:
    mass = report.captured_mass.get(f"{temperature:g}") if report else None
    if mass is None:
        return (
            f"At temperature {temperature:g} the stored head holds less of the teacher's "
            "distribution than at 1; how much is measured when the cache is filled."
        )
    return (
        f"At temperature {temperature:g} the stored head holds {number(100 * mass, 1)} % of the "
        "teacher's distribution; the rest is one bucket. Temperature 1 loses least."
    )


def _look_at_sizes(found: Findings, subject: Subject, spec: RunSpec) -> None:
    teacher, student = subject.cards
    longest = spec.training.render.max_tokens
    for card, role in ((student, "student"), (teacher, "teacher")):
        if card is not None and longest > card.context_length:
            found.warnings.append(
                f"Conversations may have {longest:,} tokens, and the {role} was made for "
                f"{card.context_length:,}. Set max tokens to {card.context_length:,} or less."
            )
    if teacher is None or spec.effective_role == "fine_tune":
        return
    ratio = compression(teacher, student)
    if ratio.compute < 1:
        found.warnings.append(
            "The student is larger than the teacher: it computes "
            f"{number(1 / ratio.compute, 1)}× as much per token. Are the two swapped?"
        )
    elif not ratio.in_band:
        side = "below" if ratio.compute < BAND[0] else "above"
        what = (
            "quantising the teacher is simpler" if side == "below" else "expect a loss of quality"
        )
        found.warnings.append(
            f"Compression is {number(ratio.compute, 1)}× in compute, {side} the band of "
            f"{BAND[0]:g}–{BAND[1]:g}×: {what}."
        )


def _look_at_schedule(found: Findings, subject: Subject, spec: RunSpec) -> None:
    schedule = spec.training.schedule
    if schedule.warmup_steps >= schedule.steps:
        found.warnings.append(
            f"Warm-up ({schedule.warmup_steps:,} steps) is as long as the training "
            f"({schedule.steps:,}): the learning rate never falls."
        )
    rounds = epochs(subject, spec)
    if rounds > MANY_EPOCHS:
        found.warnings.append(
            f"{number(rounds)} epochs: each conversation is seen that often. Fewer steps may do."
        )


def trained_on(subject: Subject, spec: RunSpec) -> int:
    """Return how many conversations a run trains on, as far as counts tell."""
    funnel = subject.funnel
    count = subject.split("train")
    if funnel is not None and spec.training.objective.ce_target == "reference":
        # References are counted over all splits: the training part has its share of them.
        share = count / max(sum(funnel.splits.values()), 1)
        count = min(count, max(1, round(funnel.references * share)))
    return min(count, spec.training.max_train_conversations or count)


def epochs(subject: Subject, spec: RunSpec) -> float:
    schedule = spec.training.schedule
    return schedule.steps * schedule.batch_size / max(trained_on(subject, spec), 1)


def spread(amount: float, rates: Sequence[float]) -> Seconds:
    """Return how long `amount` takes at past rates (amount per second): fastest to slowest.

    The middle is the median rate; fewer than three past jobs widen the range by a quarter.
    """
    wider = WIDER if len(rates) < FEW_JOBS else 1.0
    return Seconds(
        low=amount / max(rates) / wider,
        middle=amount / median(rates),
        high=amount / min(rates) * wider,
    )


@dataclass(frozen=True, slots=True)
class _Past:
    """One past job: for which checkpoint, and how much of its unit it did a second."""

    checkpoint_id: int | None
    rate: float


def _past(session: Session, phase: Phase) -> list[_Past]:
    jobs = queries.past_jobs(session, phase)
    runs = {job.run_id for job in jobs if job.run_id is not None}
    students = queries.students_of(session, runs)
    return [
        _Past(job.checkpoint_id or students.get(job.run_id or 0), job.amount / job.seconds)
        for job in jobs
    ]


def _part(
    session: Session, phase: Phase, amount: float, checkpoint: Checkpoint | None, unit: str
) -> PartOut:
    """Estimate one phase from past jobs: of the same weights, else scaled by compute a token."""
    if amount == 0:
        return PartOut(
            phase=phase, seconds=Seconds(low=0, middle=0, high=0), basis="Nothing to do."
        )
    past = _past(session, phase)
    same = [p.rate for p in past if checkpoint is not None and p.checkpoint_id == checkpoint.id]
    if same:
        basis = f"From {_jobs(len(same))} of this checkpoint, {_rate(median(same))} {unit}/s."
        return PartOut(phase=phase, seconds=spread(amount, same), basis=basis)
    rates = _scaled(session, past, checkpoint)
    if not rates:
        return PartOut(
            phase=phase,
            seconds=None,
            basis="No past job of this kind on this installation to judge by.",
        )
    basis = f"From {_jobs(len(rates))} of other checkpoints, scaled by compute per token."
    return PartOut(phase=phase, seconds=spread(amount, rates), basis=basis)


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
    mine = checkpoint.card["parameters_compute"]
    return [p.rate * compute[p.checkpoint_id] / mine for p in past if p.checkpoint_id in compute]


@lru_cache(maxsize=64)
def _text_sizes(path: Path, content_sha256: str) -> tuple[float, float]:
    del content_sha256  # part of the key: a frozen file never changes
    return text_sizes(path)


def _tokens_a_conversation(
    session: Session, subject: Subject, spec: RunSpec, settings: Settings
) -> tuple[float, str]:
    """Return mean rendered tokens of a conversation, and where the number comes from."""
    version = subject.version
    measured = cache.rendered_size(session, version.id, spec.training.render)
    if measured is not None and measured.conversations:
        mean = measured.rows / measured.conversations + 1
        return mean, "Measured when the teacher cache was filled for this version."
    words = "Estimated from the length of its texts, four characters a token."
    if version.conversations_blob is None:
        return 0.0, words
    path = LocalBlobs(settings.blobs).path(version.conversations_blob)
    characters, messages = _text_sizes(path, version.content_sha256 or "")
    mean = characters / CHARACTERS_A_TOKEN + messages * TOKENS_A_MESSAGE
    return min(mean, spec.training.render.max_tokens), words


def _disk(
    session: Session, subject: Subject, spec: RunSpec, cover: CacheOut | None
) -> dict[str, int]:
    """Return bytes by what they hold."""
    teacher, student = subject.cards
    used = {
        "checkpoint": student.bytes,
        "snapshots": SNAPSHOTS_KEPT * SNAPSHOT_WEIGHTS * FLOAT32_BYTES * student.parameters_total,
    }
    if cover is not None and teacher is not None:
        own = cache.size(session, space_of(teacher, spec.capture).address).bytes_per_row
        each = own or cache.size(session).bytes_per_row or STANDARD_BYTES_A_ROW
        used["cache"] = round(cover.missing_tokens * each)
    return used


def _look_at_disk(found: Findings, peak: int, settings: Settings) -> None:
    """Refuse what does not fit beside the blobs; the folder may not be made yet."""
    place = settings.blobs
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if peak > free:
        found.block(
            f"It takes up to {size(peak)} of disk while it trains, and {size(free)} are free in "
            f"{settings.home}. Make room there, or use a smaller student."
        )


def _anchors(session: Session, anchors: Mapping[str, Checkpoint], count: int) -> list[PartOut]:
    """Return the evaluations that a table needs beside the run's own, as one part."""
    if not anchors or not count:
        return []
    parts = [_part(session, "evaluate", count, row, "conversations") for row in anchors.values()]
    names = " and ".join(f"“{row.name}” as {role}" for role, row in anchors.items())
    basis = f"{names}: evaluated once for all runs on this set. {parts[0].basis}"
    return [PartOut(phase="evaluate", seconds=_in_all(parts), basis=basis, of=list(anchors))]


def estimate(
    session: Session,
    subject: Subject,
    spec: RunSpec,
    found: Findings,
    settings: Settings,
    *,
    anchors: Mapping[str, Checkpoint],
) -> EstimateOut:
    """Return what a run would read, take and last; zeros where its rows are not ready.

    `anchors` are the rows of its table that must be evaluated yet: role → checkpoint.
    """
    ready = subject.student.card is not None and subject.version.conversations_blob is not None
    if not ready or (subject.teacher is not None and subject.teacher.card is None):
        return EstimateOut(
            blocked=found.blocked,
            mends=found.mends,
            warnings=found.warnings,
            tokens=0,
            tokens_basis="Nothing can be estimated yet.",
            epochs=0,
            cache=None,
            disk_bytes=0,
            disk={},
            seconds=None,
            parts=[],
        )
    mean, basis = _tokens_a_conversation(session, subject, spec, settings)
    schedule = spec.training.schedule
    tokens = round(schedule.steps * schedule.batch_size * mean)
    count = subject.split("train") + subject.split("validation")
    cover = cover_of(session, subject.cards[0], spec, count=count, mean=mean)
    parts = [_part(session, "train", tokens, subject.student, "tokens")]
    if cover is not None:
        missing = cover.missing_tokens
        parts.insert(0, _part(session, "precompute", missing, subject.teacher, "tokens"))
    count = subject.split(spec.evaluation.split)
    count = min(count, spec.evaluation.max_conversations or count)
    parts.append(_part(session, "evaluate", count, subject.student, "conversations"))
    parts += _anchors(session, anchors, count)
    disk = _disk(session, subject, spec, cover)
    peak = sum(disk.values())
    _look_at_disk(found, peak, settings)
    return EstimateOut(
        blocked=found.blocked,
        mends=found.mends,
        warnings=found.warnings,
        tokens=tokens,
        tokens_basis=basis,
        epochs=epochs(subject, spec),
        cache=cover,
        disk_bytes=peak - disk["snapshots"],
        disk_peak_bytes=peak,
        disk=disk,
        seconds=_in_all(parts),
        parts=parts,
    )


def _in_all(parts: Sequence[PartOut]) -> Seconds | None:
    total = Seconds(low=0, middle=0, high=0)
    for part in parts:
        if part.seconds is None:
            return None
        total = total + part.seconds
    return total
