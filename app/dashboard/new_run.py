"""The form of a new run: kinds, presets, values, and what they become."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, QueryParams

from app.checkpoints import queries as checkpoints
from app.checkpoints.models import Checkpoint
from app.dashboard import knobs
from app.dashboard.fan_out import TooMany, fan_out
from app.datasets import queries as datasets
from app.datasets.models import DatasetVersion
from app.errors import AppError
from app.evaluations import service as evaluations
from app.projects.models import Project
from app.runs import queries, service
from app.runs.models import Run
from app.runs.schemas import EstimateOut
from app.security.csrf import FIELD as CSRF_FIELD
from app.settings import Settings
from app.specs.names import INVISIBLE, is_visible
from app.specs.served import within
from app.specs.teacher import PROFILES, ProfileName
from app.specs.training import RunRole, RunSpec
from app.web.forms import Form, field_errors

DISTILLED: RunRole = "distilled"
FINE_TUNE: RunRole = "fine_tune"
KINDS: tuple[tuple[RunRole, str, str], ...] = (
    ("distilled", "Distilled", "Learns the teacher's whole distribution, from its cache."),
    ("sequence_level", "Sequence-level", "Learns the teacher's answers as text."),
    ("labels_only", "Labels only", "Learns the references: what distilling must beat."),
    ("fine_tune", "Fine-tune", "Tunes a checkpoint, such as the teacher, on the data."),
)
Values = dict[str, Any]
"""The form: a text for each field, and `also`, the kinds that start beside."""
COMPARED: tuple[RunRole, ...] = ("distilled", "sequence_level", "labels_only")
"""The three that show what distilling is worth, at equal steps."""
PRESETS: tuple[tuple[str, str, str], ...] = (
    ("fast", "Fast check", "20 steps on 200 conversations: proves the set-up before you pay."),
    ("balanced", "Balanced", "About 3 epochs, 150 steps at least. Good enough to press start."),
    ("thorough", "Thorough", "About 8 epochs, 400 steps at least, until the best is reached."),
)
EPOCHS = {"balanced": (3, 150, 3000), "thorough": (8, 400, 12_000)}
"""Preset → epochs, and the fewest and most steps."""
PATIENCE = "4"
"""Of the thorough preset, which validates eight times at least."""
TUNED_LAYERS = 8
USUAL_TOKENS = 1024
DEFAULTS: dict[str, str] = {
    name: value
    for name, value in knobs.values_of(
        RunSpec(name="x", teacher_id=None, student_id=0, dataset_version_id=0)
    ).items()
    if knobs.BY_NAME[name].kind != "flag"  # a box that is not ticked is not sent either
} | dict.fromkeys(("name", "group", "role", "preset", "parent", "key", "teacher_id"), "")
DRAWN = ("role", "preset", "profile")
"""Choices that fill others: the form tells for which it was drawn."""
FIXED = ("name", "group", "role", "preset", "teacher_id", "student_id", "dataset_version_id")
_OBJECTIVES: dict[RunRole, dict[str, str]] = {
    "distilled": {"divergence": "forward_kl", "alpha": "0.7", "ce_target": "logged"},
    "sequence_level": {"alpha": "0", "ce_target": "logged"},
    "labels_only": {"alpha": "0", "ce_target": "reference"},
    "fine_tune": {"alpha": "0", "ce_target": "logged"},
}
_BETWEEN = re.compile(r",\s+|[;\s]\s*")
"""Between the values of a list; a comma alone may be meant as a decimal point, and is refused."""
_ABOUT = {
    "schedule": "micro_batch_size",
    "objective": "alpha",
    "training": "select_by",
    "capture": "profile",
}
"""Where a rule that binds several settings of a part of the spec is told."""
_STEMS: dict[RunRole, str] = {
    "distilled": "distilled",
    "sequence_level": "sequence-level",
    "labels_only": "labels-only",
    "fine_tune": "tuned",
}


@dataclass(frozen=True, slots=True)
class Choices:
    """What a project offers to choose from."""

    checkpoints: Sequence[Checkpoint]
    versions: Sequence[DatasetVersion]
    last: RunSpec | None
    """The newest run's settings: what is cut alike shares a teacher cache."""
    deciding: str = "exact_match"
    """The project's deciding metric."""

    @property
    def checkpoint_options(self) -> list[tuple[int, str]]:
        return [(c.id, _labelled(c.name, c.state, "ready")) for c in self.checkpoints]

    @property
    def version_options(self) -> list[tuple[int, str]]:
        named = ((v, f"{v.dataset.name} v{v.number}") for v in self.versions)
        return [(v.id, _labelled(name, v.state, "frozen")) for v, name in named]

    def version(self, value: str) -> DatasetVersion | None:
        return next((v for v in self.versions if str(v.id) == value), None)

    def checkpoint(self, value: str) -> Checkpoint | None:
        return next((c for c in self.checkpoints if str(c.id) == value), None)


def _labelled(name: str, state: str, usual: str) -> str:
    return name if state == usual else f"{name} ({state})"


def sent(given: FormData | QueryParams) -> Values:
    """Return the form as a browser sends it, in an address or in a body.

    `also` may be given more than once. A setting that the chosen kind does not show is not sent:
    its default stands in.
    """
    texts = {k: v for k, v in given.items() if isinstance(v, str) and k != CSRF_FIELD}
    values: Values = {**DEFAULTS, **texts}
    if values["role"] not in _OBJECTIVES:
        values["role"] = DISTILLED
    values["also"] = [v for v in given.getlist("also") if isinstance(v, str)]
    return values


def filled(session: Session, project: Project, values: Values) -> Values:
    """Return the values with what follows from another kind, preset or profile, or from a mend.

    The form tells for which it was drawn, so an address that is opened again fills it in the same
    way.
    """
    choices, mend = choices_of(session, project), _mend(values.pop("set", ""))
    if mend.pop("kind", "") == "ce":
        mend = {"role": "sequence_level"}
    drawn = {name: values.pop(f"drawn_{name}", values[name]) for name in DRAWN}
    changed = {**values, **mend}
    if changed["profile"] != drawn["profile"]:
        usual = PROFILES.get(cast("ProfileName", changed["profile"]), {})
        changed |= {name: str(value) for name, value in usual.items()}
    if changed["role"] != drawn["role"]:
        return with_role(session, project, choices, changed)
    if changed["preset"] != drawn["preset"]:
        return with_preset(choices, changed)
    return changed


def _mend(text: str) -> dict[str, str]:
    try:
        found = orjson.loads(text) if text else {}
    except ValueError:
        return {}
    known = {*knobs.BY_NAME, "kind", "name"}
    return {k: str(v) for k, v in found.items() if k in known} if isinstance(found, dict) else {}


def choices_of(session: Session, project: Project) -> Choices:
    versions = datasets.versions_of(session, project.id)
    return Choices(
        [c for c in checkpoints.of_project(session, project.id) if c.state != "failed"],
        [v for v in versions if v.state in ("frozen", "draft")],
        queries.last_spec(session, project.id),
        project.deciding_metric,
    )


def first_values(session: Session, project: Project, choices: Choices) -> Values:
    """Return the values of a form nobody has touched: good enough to press start."""
    frozen = next((v for v in choices.versions if v.state == "frozen"), None)
    version = frozen or (choices.versions[0] if choices.versions else None)
    values = {
        **DEFAULTS,
        **dict.fromkeys((k.name for k in knobs.KNOBS if k.kind == "flag"), ""),
        "also": [],
        "role": DISTILLED,
        "preset": "balanced",
        "teacher_id": str(project.teacher_id or ""),
        "student_id": str(project.student_id or ""),
        "dataset_version_id": str(version.id if version else ""),
        "group": f"{version.dataset.name}-v{version.number}" if version else "",
        "parent": "",
    }
    return with_role(session, project, choices, values)


def cloned_values(session: Session, project: Project, parent: Run) -> Values:
    """Return a run's values as the start of another."""
    spec = RunSpec.model_validate(parent.spec)
    values = {
        **knobs.values_of(spec),
        "also": [],
        "role": spec.effective_role,
        "preset": "",
        "teacher_id": str(spec.teacher_id or ""),
        "student_id": str(spec.student_id),
        "dataset_version_id": str(spec.dataset_version_id),
        "group": spec.group or "",
        "parent": str(parent.number),
    }
    return {**values, "name": queries.free_name(session, project.id, spec.name, spec.group)}


def with_role(
    session: Session, project: Project, choices: Choices, values: Mapping[str, Any]
) -> Values:
    """Return the values with everything that follows from the kind, and the preset's steps."""
    role = cast("RunRole", values["role"])
    changed = {**values, **_OBJECTIVES[role]}
    if role == FINE_TUNE:
        changed["group"] = ""
        if changed["student_id"] == str(project.student_id or ""):
            changed["student_id"] = str(project.teacher_id or "")
        changed["teacher_id"] = ""
        changed["top_layers"] = _tuned_layers(choices.checkpoint(changed["student_id"]))
    elif not changed["teacher_id"] and project.teacher_id:
        changed["teacher_id"] = str(project.teacher_id)
        if changed["student_id"] == changed["teacher_id"]:
            changed["student_id"] = str(project.student_id or "")
    if role == DISTILLED:
        changed |= _server_limits(choices.checkpoint(changed["teacher_id"]))
    changed = with_preset(choices, changed)
    changed["name"] = queries.free_name(session, project.id, _STEMS[role], changed["group"] or None)
    return changed


def _server_limits(teacher: Checkpoint | None) -> dict[str, str]:
    """Return, as typed, the capture that a teacher behind a server allows."""
    server = (teacher.card or {}).get("server") if teacher else None
    top = server["top"] if server else None
    return {} if top is None else {"teacher_from": "cache", "temperature": "1", **within(top)}


def _tuned_layers(checkpoint: Checkpoint | None) -> str:
    """Return how many top layers tuning moves, as typed: all of a checkpoint that has no more."""
    depth = checkpoint.card["depth"] if checkpoint and checkpoint.card else None
    return str(TUNED_LAYERS) if depth is None or depth > TUNED_LAYERS else ""


def with_preset(choices: Choices, values: Mapping[str, Any]) -> Values:
    """Return the values with the preset's knobs filled in."""
    preset = values.get("preset", "")
    version = choices.version(values.get("dataset_version_id", ""))
    splits = (version.funnel or {}).get("splits", {}) if version else {}
    changed = dict(values)
    changed["max_tokens"] = str(_context(choices, values))
    if choices.last is not None:
        changed["max_new_tokens"] = str(choices.last.evaluation.max_new_tokens)
    if preset == "fast":
        return changed | {
            "steps": "20",
            "batch_size": "8",
            "warmup_steps": "2",
            "validate_every": "10",
            "snapshot_every": "10",
            "select_by": "loss",
            "patience": "",
            "max_train_conversations": "200",
            "max_conversations": "50",
        }
    if preset not in EPOCHS:
        return changed
    rounds, least, most = EPOCHS[preset]
    batch = 16
    steps = min(max(least, -(-rounds * splits.get("train", 0) // batch)), most)
    thorough = preset == "thorough"
    often = max(10, min(100, steps // (8 if thorough else 3)))
    return changed | {
        "steps": str(steps),
        "batch_size": str(batch),
        "warmup_steps": str(max(10, steps // 30)),
        "validate_every": str(often),
        "snapshot_every": str(often),
        "select_by": _selected_by(choices.deciding, values) if thorough else "loss",
        "patience": PATIENCE if thorough else "",
        "max_train_conversations": "",
        "max_conversations": "",
    }


def _selected_by(deciding: str, values: Mapping[str, Any]) -> str:
    """Return what judges snapshots: the project's deciding metric, where a run can measure it."""
    return "loss" if deciding == "kl" and values.get("role") != DISTILLED else deciding


def _context(choices: Choices, values: Mapping[str, str]) -> int:
    """Return how long conversations may be: as last, else 1,024; at most what can be read."""
    usual = choices.last.training.render.max_tokens if choices.last else USUAL_TOKENS
    found = [choices.checkpoint(values.get(name, "")) for name in ("teacher_id", "student_id")]
    known = [
        # A server adds a token to each text it scores.
        int(c.card["context_length"]) - bool(c.card.get("server"))
        for c in found
        if c is not None and c.card and c.card["context_length"]
    ]
    return min([usual, *known])


def read_specs(values: Mapping[str, str]) -> tuple[Form[RunSpec], list[RunSpec]]:
    """Build the specs a form describes; the form holds the first and errors by its fields.

    There are several where a setting lists its values, and none where one of them does not hold.
    """
    form: Form[RunSpec] = Form(values=dict(values))
    tree, errors = _tree(values)
    try:
        variants = fan_out(tree)
    except TooMany as error:
        variants, errors[""] = [], str(error)
    specs = [_checked(variant, values.get("role", DISTILLED), errors) for variant in variants]
    form.errors = {k: v for k, v in errors.items() if k in knobs.BY_NAME or k in FIXED}
    form.message = next((v for k, v in errors.items() if k not in form.errors), "")
    found = [] if errors else [spec for spec in specs if spec is not None]
    form.data = found[0] if found else None
    return form, found


def _checked(tree: dict[str, Any], role: str, errors: dict[str, str]) -> RunSpec | None:
    try:
        spec = RunSpec.model_validate(tree)
    except ValidationError as error:
        for place, sentence in field_errors(error.errors(include_url=False)).items():
            name = knobs.BY_PATH.get(tuple(place.split(".")), place.rpartition(".")[2])
            errors.setdefault(_ABOUT.get(name, name), sentence)
        return None
    if role == DISTILLED and not spec.training.objective.needs_teacher:
        errors["alpha"] = "Must be above 0: without the teacher's weight it is sequence-level."
    return spec


def _tree(values: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the nested values of a spec, and what could not be read."""
    errors: dict[str, str] = {}
    tree: dict[str, Any] = {"training": {"objective": {}, "schedule": {"betas": ["0.9", "0.95"]}}}
    role = values.get("role", DISTILLED)
    for knob in knobs.KNOBS:
        value = _read(knob, values.get(knob.name, ""), errors)
        if isinstance(value, list) and knob.may_vary and knob.teacher_only and role != DISTILLED:
            value = value[0]  # not read: it makes no second run
        _put(tree, knob.path, value)
    objective = tree["training"]["objective"]
    if role != DISTILLED:
        objective |= {"kind": "ce", "alpha": 0}
    if role in _OBJECTIVES and role != FINE_TUNE:
        objective["ce_target"] = _OBJECTIVES[role]["ce_target"]
    tree["training"].setdefault("render", {})["answer"] = objective["ce_target"]
    for name in ("name", "group"):
        tree[name] = values.get(name, "").strip() or None
        if tree[name] and not is_visible(tree[name]):
            errors[name] = INVISIBLE
    tree["name"] = tree["name"] or ""
    tree["role"] = FINE_TUNE if role == FINE_TUNE else None
    tree["teacher_id"] = values.get("teacher_id") or None
    for name, words in (
        ("student_id", "Choose a checkpoint."),
        ("dataset_version_id", "Choose a dataset version."),
    ):
        tree[name] = values.get(name) or 0
        if not values.get(name):
            errors[name] = words
    return tree, errors


def _read(knob: knobs.Knob, text: str, errors: dict[str, str]) -> Any:
    text = text.strip()
    if knob.kind == "flag":
        return text in ("true", "on")
    if not text:
        if not knob.optional:
            errors[knob.name] = "Is needed."
        return None if knob.optional else text
    if knob.kind == "grid":
        return [part for part in text.replace(",", " ").split() if part]
    if knob.may_vary and knob.kind != "select":
        parts = [part for part in _BETWEEN.split(text) if part]
        return parts if len(parts) > 1 else text
    return text


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    place: Any = tree
    for part in path[:-1]:
        place = place.setdefault(part, {})
    if isinstance(place, list):
        place[int(path[-1])] = value
    else:
        place[path[-1]] = value


def specs_of(
    session: Session, project: Project, values: Values, own: Sequence[RunSpec]
) -> list[RunSpec]:
    """Return the form's own runs and those started beside them, at equal steps, under free names.

    own: what `read_specs` found.
    """
    specs = list(own)
    for role in COMPARED if own else ():
        if role in values["also"] and role != own[0].effective_role:
            changed = {**values, "role": role, **_OBJECTIVES[role]}
            changed["select_by"] = _selected_by(values["select_by"], changed)
            changed["name"] = queries.free_name(session, project.id, _STEMS[role], own[0].group)
            specs += read_specs(changed)[1]
    return specs


def estimates(
    session: Session, project: Project, specs: Sequence[RunSpec], settings: Settings
) -> tuple[list[EstimateOut], str]:
    """Return an estimate for each run, or a sentence why there is none."""
    try:
        # The table's other rows are evaluated once, with the first of the runs.
        first = [evaluations.estimate(session, project, spec, settings) for spec in specs[:1]]
        rest = [
            service.estimate(session, project, spec, settings, beside=specs[:at])
            for at, spec in enumerate(specs)
            if at
        ]
    except AppError as error:
        return [], error.message
    return [*first, *rest], ""
