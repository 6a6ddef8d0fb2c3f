"""What was set for a run, as columns of the compare table: text to show, a value to sort by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.checkpoints.models import Checkpoint
from app.checkpoints.service import compression_between
from app.dashboard.knobs import divergence_words
from app.metrics.formatting import compression, number
from app.runs.models import Run
from app.specs.training import RunSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of one run; `value` is a number where numbers are compared."""

    text: str
    value: float | str


@dataclass(frozen=True, slots=True)
class Known:
    """What the settings of runs refer to."""

    checkpoints: Mapping[int, Checkpoint]
    sets: Mapping[int, str]
    """Dataset version id → “dataset@number”."""


@dataclass(frozen=True, slots=True)
class SettingColumn:
    key: str
    label: str
    sub: str
    read: Callable[[RunSpec, Known], Setting | None]
    numeric: bool = True


def settings_of(run: Run, known: Known) -> dict[str, Setting]:
    """Return column key → setting, without those that do not apply to the run."""
    spec = RunSpec.model_validate(run.spec)
    found = {column.key: column.read(spec, known) for column in COLUMNS}
    return {key: setting for key, setting in found.items() if setting is not None}


def _number(value: float | None, digits: int = 0) -> Setting | None:
    return None if value is None else Setting(number(value, digits), value)


def _plain(value: float) -> Setting:
    """Return a rate or a factor with the digits that it has."""
    return Setting(f"{value:g}".replace("-", "\u2212"), value)


def _text(value: str | None) -> Setting | None:
    return None if value is None else Setting(value, value)


def _checkpoint(found: int | None, known: Known) -> Setting | None:
    row = known.checkpoints.get(found or 0)
    return _text(row.name if row else None)


def _student_size(spec: RunSpec, known: Known) -> Setting | None:
    teacher = known.checkpoints.get(spec.teacher_id or 0)
    student = known.checkpoints.get(spec.student_id)
    smaller = compression_between(teacher, student) if teacher and student else None
    return Setting(compression(smaller.compute), smaller.compute) if smaller else None


def _temperature(spec: RunSpec, _: Known) -> Setting | None:
    objective = spec.training.objective
    return _plain(objective.temperature) if objective.needs_teacher else None


def _objective(spec: RunSpec, _: Known) -> Setting | None:
    objective = spec.training.objective
    teacher = divergence_words(objective) if objective.alpha else ""
    parts = [teacher, "CE" if objective.alpha < 1 else ""]
    return _text(" + ".join(part for part in parts if part))


def _answers(spec: RunSpec, _: Known) -> Setting | None:
    words = {"reference": "references", "logged": "logged answers"}
    return _text(words[spec.training.objective.ce_target])


def _moving(spec: RunSpec, _: Known) -> Setting | None:
    trainable = spec.training.trainable
    layers = f"top {trainable.top_layers} layers" if trainable.top_layers else "all weights"
    return _text(f"{layers}, embeddings frozen" if trainable.freeze_embeddings else layers)


COLUMNS: tuple[SettingColumn, ...] = (
    SettingColumn(
        "student", "Student", "start", lambda s, k: _checkpoint(s.student_id, k), numeric=False
    ),
    SettingColumn("compression", "Compression", "in compute", _student_size),
    SettingColumn(
        "teacher", "Teacher", "", lambda s, k: _checkpoint(s.teacher_id, k), numeric=False
    ),
    SettingColumn(
        "data", "Data", "", lambda s, k: _text(k.sets.get(s.dataset_version_id)), numeric=False
    ),
    SettingColumn("objective", "Objective", "", _objective, numeric=False),
    SettingColumn("answers", "Trained on", "text", _answers, numeric=False),
    SettingColumn("alpha", "α", "teacher’s share", lambda s, _: _plain(s.training.objective.alpha)),
    SettingColumn("temperature", "T", "temperature", _temperature),
    SettingColumn("steps", "Steps", "", lambda s, _: _number(s.training.schedule.steps)),
    SettingColumn(
        "batch", "Batch", "conversations", lambda s, _: _number(s.training.schedule.batch_size)
    ),
    SettingColumn(
        "rate", "Learning rate", "", lambda s, _: _plain(s.training.schedule.learning_rate)
    ),
    SettingColumn(
        "warmup", "Warm-up", "steps", lambda s, _: _number(s.training.schedule.warmup_steps)
    ),
    SettingColumn(
        "decay", "Weight decay", "", lambda s, _: _plain(s.training.schedule.weight_decay)
    ),
    SettingColumn(
        "limit",
        "Training limit",
        "conversations",
        lambda s, _: _number(s.training.max_train_conversations),
    ),
    SettingColumn(
        "length", "Length", "tokens at most", lambda s, _: _number(s.training.render.max_tokens)
    ),
    SettingColumn("moving", "Trained weights", "", _moving, numeric=False),
    SettingColumn(
        "precision", "Precision", "", lambda s, _: _text(s.training.precision), numeric=False
    ),
    SettingColumn("seed", "Seed", "", lambda s, _: Setting(str(s.training.seed), s.training.seed)),
)
