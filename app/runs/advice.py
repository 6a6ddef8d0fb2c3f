"""Before a run starts: what forbids it, what to mend, and what is doubtful."""

import shutil
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from app.metrics.formatting import number, size
from app.runs import queries
from app.runs.disk import Others, expected_bytes
from app.runs.schemas import Mend, Reason
from app.runs.subject import Subject, epochs
from app.settings import Settings
from app.specs.checkpoint import BAND, CheckpointCard, compression, verdict_of_cards
from app.specs.served import profile_problems
from app.specs.teacher import CacheReport
from app.specs.training import PACKABLE, RunSpec
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of

MANY_EPOCHS = 60


@dataclass(slots=True)
class Findings:
    """Why a run cannot start (with what would mend it), and what to know before it does."""

    reasons: list[Reason] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def block(self, sentence: str, *mends: Mend, at: str | None = None) -> None:
        """Add a reason; at: the setting it is about."""
        self.reasons.append(Reason(sentence=sentence, field=at, mends=list(mends)))

    @property
    def blocked(self) -> str | None:
        return " ".join(reason.sentence for reason in self.reasons) or None


SEQUENCE_LEVEL = Mend(
    label="Use sequence-level",
    values={"kind": "ce", "alpha": "0", "ce_target": "logged"},
)
LIVE = Mend(label="Use the live teacher", values={"teacher_from": "live"})
AUDIT = Mend(label="Keep 256 tokens", values={"profile": "audit"})
MOST_DENSE = 8_192


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
        free = queries.free_name(session, project_id, spec.name, spec.group)
        found.block(
            f"Run #{twin.number} of group “{spec.group}” is called “{spec.name}” already, and a "
            "table could not tell the two apart. Choose another name.",
            Mend(label=f"Call it “{free}”", values={"name": free}),
            at="name",
        )
    return found


def _look_at_rows(found: Findings, subject: Subject, spec: RunSpec) -> None:
    version = subject.version
    if version.state != "frozen":
        sentence = f"The dataset version is {version.state}: freeze it before a run uses it."
        found.block(sentence, at="dataset_version_id")
    for at, checkpoint in (("student_id", subject.student), ("teacher_id", subject.teacher)):
        if checkpoint is not None and (checkpoint.state != "ready" or checkpoint.card is None):
            mend = "Wait for its job" if checkpoint.state == "registering" else "Register it again"
            found.block(f"“{checkpoint.name}” is {checkpoint.state}. {mend}.", at=at)
    if subject.student.card and CheckpointCard.model_validate(subject.student.card).server:
        found.block(
            f"“{subject.student.name}” is behind a server: a student is trained here and needs its "
            "weights. Register them from a folder or a hub.",
            at="student_id",
        )
    if spec.training.objective.needs_teacher and subject.teacher is None:
        sentence = (
            "An objective with a teacher term needs a teacher: choose one, or set alpha to 0."
        )
        found.block(sentence, SEQUENCE_LEVEL, at="teacher_id")


def _look_at_weights(found: Findings, subject: Subject, spec: RunSpec) -> None:
    if subject.teacher is not None and subject.teacher.id == subject.student.id:
        found.block(
            "Teacher and student are one checkpoint: it would learn what it does already. Choose "
            "a smaller student, or make one from the teacher.",
            at="student_id",
        )
    depth, top = subject.cards[1].depth, spec.training.trainable.top_layers
    if top is not None and depth is not None and top > depth:
        sentence = f"The student has {depth} layers: train at most so many, or leave it empty."
        found.block(sentence, at="top_layers")
    architecture = subject.cards[1].architecture
    if spec.training.schedule.packing and architecture not in PACKABLE:
        found.block(
            f"Packing is exact for {', '.join(PACKABLE)}, and “{subject.student.name}” is a "
            f"{architecture}. Turn packing off.",
            Mend(label="Turn packing off", values={"packing": ""}),
            at="packing",
        )


def _look_at_data(found: Findings, subject: Subject, spec: RunSpec) -> None:
    funnel = subject.funnel
    if funnel is None:
        return
    if not subject.split("train"):
        sentence = "The version has no training conversations. Import it with smaller shares."
        found.block(sentence, at="dataset_version_id")
    if spec.training.objective.ce_target == "reference" and not funnel.references:
        found.block(
            "No conversation of this version has a reference, so there is nothing to train labels "
            "only on. Import with a reference column, or train on the logged answers.",
            Mend(label="Train on logged answers", values={"ce_target": "logged"}),
            at="dataset_version_id",
        )
    elif spec.training.objective.ce_target == "reference":
        _look_at_references(found, subject)
    wanted = spec.evaluation.split
    if not subject.split(wanted):
        other = next((s for s in ("test", "validation") if subject.split(s)), None)
        mends = [Mend(label=f"Evaluate on {other}", values={"split": other})] if other else []
        found.block(f"The {wanted} split has no conversations to evaluate on.", *mends, at="split")
    if spec.evaluation.truth == "reference" and not funnel.references:
        found.block(
            "The evaluation asks for references, and no conversation of this version has one.",
            Mend(label="Compare with logged answers", values={"truth": "auto"}),
            at="truth",
        )
    if not subject.split("validation"):
        found.warnings.append(
            "The version has no validation conversations: the last weights are kept, not the best"
            f"{', and patience ends nothing' if spec.training.schedule.patience else ''}."
        )
    if wanted == "train":
        found.warnings.append(
            "Evaluating on training conversations shows what was learned by heart."
        )


def _look_at_references(found: Findings, subject: Subject) -> None:
    """Say where no reference has fallen into a part that would need one."""
    if subject.split("train") and subject.referenced("train") == 0:
        found.block(
            "No training conversation of this version has a reference: all have fallen into the "
            "parts held out. Import with smaller shares, or train on the logged answers.",
            Mend(label="Train on logged answers", values={"ce_target": "logged"}),
            at="dataset_version_id",
        )
    elif subject.split("validation") and subject.referenced("validation") == 0:
        found.warnings.append(
            "No validation conversation has a reference: the last weights are kept, not the best."
        )


def _look_at_teacher(session: Session, found: Findings, subject: Subject, spec: RunSpec) -> None:
    teacher, student = subject.cards
    objective = spec.training.objective
    if teacher is None or subject.teacher is None:
        return
    verdict = verdict_of_cards(teacher, student)
    if teacher.server is not None:
        found.warnings.append(
            "The teacher is behind a server: it gets no row of its own in the comparison, and KL "
            "and agreement, which need its whole distribution, are left out."
        )
    if not objective.needs_teacher:
        return
    if teacher.server is not None and not _look_at_server(found, subject, spec, teacher):
        return
    if not verdict.logits_allowed:
        pair = (
            f"“{subject.student.name}” cannot learn from “{subject.teacher.name}” token by token."
        )
        found.block(f"{pair} {verdict.sentence}", SEQUENCE_LEVEL, at="student_id")
    if not objective.reads_cache:
        found.warnings.append(
            f"The live teacher ({size(teacher.bytes or 0)}) is held beside the student and scores "
            "every batch anew: a step takes longer, and nothing is cached for the next run."
        )
        return
    if teacher.server is None:
        _look_at_profile(found, teacher, spec)
    grid = spec.capture.temperatures
    if objective.temperature not in grid:
        shown = ", ".join(f"{t:g}" for t in grid)
        found.block(
            f"Temperature {objective.temperature:g} is not in the cache's grid ({shown}): its "
            "normaliser is not stored. Take one of these, or add it to the grid.",
            Mend(label="Use temperature 1", values={"temperature": "1"}),
            *(() if teacher.server else (LIVE,)),
            at="temperature",
        )
    elif objective.temperature > 1 and spec.capture.name != "dense":
        report = cache.report(session, space_of(teacher, spec.capture).address)
        found.warnings.append(_mass_sentence(objective.temperature, report, spec.capture.name))


def _look_at_profile(found: Findings, teacher: CheckpointCard, spec: RunSpec) -> None:
    entries = teacher.tokenizer_entries or 0
    if spec.capture.name == "dense" and entries > MOST_DENSE:
        found.block(
            f"Dense rows keep all {entries:,} tokens of the vocabulary, about "
            f"{size(expected_bytes(spec.capture, entries))} a token of text: that is for "
            f"vocabularies of {MOST_DENSE:,} at most. Keep 256 tokens, or take the live teacher.",
            AUDIT,
            LIVE,
            at="profile",
        )
    elif spec.capture.name == "sampled" and not spec.training.objective.fits_samples:
        found.warnings.append(
            "The samples serve forward KL at temperature 1 alone; this objective reads the head "
            "and takes the rest as one bucket."
        )


def _look_at_server(
    found: Findings, subject: Subject, spec: RunSpec, teacher: CheckpointCard
) -> bool:
    """Say what a server cannot give; return whether it gives rows at all."""
    server, name = teacher.server, subject.teacher.name if subject.teacher else ""
    if server is None or server.top is None:
        why = server.why_text_only if server else ""
        found.block(
            f"“{name}” is a text-only endpoint, so nothing can be learned from its probabilities. "
            f"{why} Train on its answers as text.".replace("  ", " "),
            SEQUENCE_LEVEL,
            at="teacher_id",
        )
        return False
    if not spec.training.objective.reads_cache:
        found.block(
            f"“{name}” is behind a server, so it cannot be held live beside the student: its rows "
            "are asked for once and stored.",
            Mend(label="Use stored rows", values={"teacher_from": "cache"}),
            at="teacher_from",
        )
        return False
    for problem in profile_problems(server.top, spec.capture):
        mend = Mend(label=problem.label, values=dict(problem.values))
        found.block(problem.sentence, mend, at=problem.field)
    reads, longest = teacher.context_length, spec.training.render.max_tokens
    if reads is not None and longest >= reads:
        found.block(
            f"“{name}” reads {reads:,} tokens with the one it must add, and conversations may "
            f"have {longest:,}: its server would refuse them. Set max tokens to {reads - 1:,}.",
            Mend(label=f"Use {reads - 1:,}", values={"max_tokens": str(reads - 1)}),
            at="max_tokens",
        )
    return True


def _mass_sentence(temperature: float, report: CacheReport | None, profile: str) -> str:
    mass = report.captured_mass.get(f"{temperature:g}") if report else None
    if mass is None:
        return (
            f"At temperature {temperature:g} the stored head holds less of the teacher's "
            "distribution than at 1; how much is measured when the cache is filled."
        )
    more = "the live teacher keeps" if profile == "audit" else "audit rows or the live teacher keep"
    return (
        f"At temperature {temperature:g} the stored head holds {number(100 * mass, 1)} % of the "
        f"teacher's distribution; the rest is one bucket. Temperature 1 loses least; {more} more."
    )


def _look_at_sizes(found: Findings, subject: Subject, spec: RunSpec) -> None:
    teacher, student = subject.cards
    longest = spec.training.render.max_tokens
    asked = teacher is not None and teacher.server is not None  # a server refuses: a reason
    for card, role in ((student, "student"), (None if asked else teacher, "teacher")):
        if card is not None and card.context_length and longest > card.context_length:
            found.warnings.append(
                f"Conversations may have {longest:,} tokens, and the {role} was made for "
                f"{card.context_length:,}. Set max tokens to {card.context_length:,} or less."
            )
    if teacher is None or spec.effective_role == "fine_tune":
        return
    ratio = compression(teacher, student)
    if ratio is None:
        found.warnings.append(
            "How much smaller the student is cannot be told: the teacher's server does not say its "
            "size. A tokenizer folder with the model's config.json beside it would."
        )
        return
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


def look_at_disk(found: Findings, peak: int, waiting: Others, settings: Settings) -> None:
    """Refuse what does not fit beside the blobs; the folder may not be made yet."""
    place = settings.blobs
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if peak + waiting.bytes <= free:
        return
    needs = f"It takes up to {size(peak)} of disk while it trains"
    have = f"{size(free)} are free in {settings.home}"
    if peak > free:
        found.block(f"{needs}, and {have}. Make room there, or use a smaller student.")
    else:
        before = "the run" if waiting.runs == 1 else f"the {waiting.runs} runs"
        found.block(
            f"{needs}, {before} before it up to {size(waiting.bytes)} more, and {have}. Make room "
            "there, wait until others have ended, or use a smaller student."
        )
