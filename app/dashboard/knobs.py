"""Every setting of a run that a person may turn: where it lies in the spec, and its words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.specs.training import Objective, RunSpec

Options = tuple[tuple[str, str], ...]
OBJECTIVE, DATA = "Objective", "Rendering"
SCHEDULE, WEIGHTS = "Schedule", "Optimiser and weights"
CACHE, EVALUATION = "Teacher cache", "Evaluation"


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of the form; `path` is its place in a RunSpec."""

    name: str
    path: tuple[str, ...]
    group: str
    label: str
    hint: str
    kind: Literal["int", "float", "grid", "select", "flag"] = "int"
    options: Options = ()
    optional: bool = False
    teacher_only: bool = False
    """Read only where the objective has a teacher term."""
    empty: str = "all"
    """What stands for no value."""

    @property
    def may_vary(self) -> bool:
        """Whether runs that start together may differ in it: compared ones share an evaluation."""
        return self.kind in ("int", "float", "select") and self.group != EVALUATION

    def read(self, spec: dict[str, Any]) -> Any:
        """Return the knob's value in a spec as JSON."""
        found: Any = spec
        for part in self.path:
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found

    def typed(self, value: Any) -> str:
        """Return a value as a form field holds it."""
        if value is None:
            return ""
        if self.kind == "flag":
            return "true" if value else ""
        if self.kind == "grid":
            return ", ".join(f"{t:g}" for t in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def shown(self, value: Any) -> str:
        """Return a value in words."""
        if value is None:
            return self.empty
        if self.kind == "flag":
            return "yes" if value else "no"
        if self.kind == "select":
            return dict(self.options).get(str(value), str(value))
        return f"{value:,}" if isinstance(value, int) else self.typed(value)


def _training(*path: str) -> tuple[str, ...]:
    return ("training", *path)


_TURNS: Options = (
    ("all_turns", "all assistant turns"),
    ("completion", "all after the last user message"),
    ("last_turn", "the last turn only"),
)
_TEXT: Options = (("logged", "the logged answer"), ("reference", "the reference"))
_PRECISION: Options = (
    ("auto", "bf16 where it helps"),
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
)
_SPLITS: Options = (("test", "test"), ("validation", "validation"), ("train", "train"))
_TRUTH: Options = (
    ("auto", "reference, else logged answer"),
    ("reference", "reference only"),
    ("logged", "logged answer only"),
)

_PROFILES: Options = (
    ("standard", "standard: head, bucket"),
    ("sampled", "sampled: head, samples"),
    ("audit", "audit: 256 tokens, bucket"),
    ("dense", "dense: everything"),
)
_TEACHERS: Options = (
    ("cache", "stored, scored once"),
    ("live", "live, whole, each batch"),
)
DIVERGENCES: Options = (
    ("forward_kl", "forward KL"),
    ("reverse_kl", "reverse KL"),
    ("jsd", "Jensen–Shannon"),
    ("total_variation", "total variation"),
)

SELECTED_BY: Options = (
    ("loss", "validation loss"),
    ("kl", "validation KL"),
    ("agreement", "token agreement"),
    ("exact_match", "exact match"),
    ("field_f1", "field F1"),
)

KNOBS: tuple[Knob, ...] = (
    Knob(
        "divergence",
        _training("objective", "kind"),
        OBJECTIVE,
        "Divergence",
        "Forward KL covers all the teacher does; reverse KL keeps to what it does most.",
        "select",
        DIVERGENCES,
        teacher_only=True,
    ),
    Knob(
        "temperature",
        _training("objective", "temperature"),
        OBJECTIVE,
        "Temperature",
        "Softens both distributions. The cache keeps normalisers for its grid only.",
        "float",
        teacher_only=True,
    ),
    Knob(
        "teacher_from",
        _training("objective", "teacher"),
        OBJECTIVE,
        "Teacher's distribution",
        "Live needs both in memory and more time a step, and serves every temperature.",
        "select",
        _TEACHERS,
        teacher_only=True,
    ),
    Knob(
        "beta",
        _training("objective", "beta"),
        OBJECTIVE,
        "Beta",
        "The teacher's share in the mean of Jensen–Shannon; the others do not read it.",
        "float",
        teacher_only=True,
    ),
    Knob(
        "alpha",
        _training("objective", "alpha"),
        OBJECTIVE,
        "Alpha",
        "Weight of the teacher; the rest is cross-entropy on the logged answer.",
        "float",
        teacher_only=True,
    ),
    Knob(
        "ce_target",
        _training("objective", "ce_target"),
        OBJECTIVE,
        "Text to learn",
        "The logged answer is the teacher's where it wrote the log.",
        "select",
        _TEXT,
    ),
    Knob(
        "steps",
        _training("schedule", "steps"),
        SCHEDULE,
        "Steps",
        "Optimiser steps. Runs are comparable at equal steps.",
    ),
    Knob(
        "batch_size",
        _training("schedule", "batch_size"),
        SCHEDULE,
        "Batch size",
        "Conversations a step.",
    ),
    Knob(
        "learning_rate",
        _training("schedule", "learning_rate"),
        SCHEDULE,
        "Learning rate",
        "The highest, after warm-up.",
        "float",
    ),
    Knob(
        "warmup_steps",
        _training("schedule", "warmup_steps"),
        SCHEDULE,
        "Warm-up steps",
        "The rate rises in a line over these.",
    ),
    Knob(
        "validate_every",
        _training("schedule", "validate_every"),
        SCHEDULE,
        "Validate every",
        "Steps. The best weights by these validations are kept.",
    ),
    Knob(
        "select_by",
        _training("schedule", "select_by"),
        SCHEDULE,
        "Best by",
        "Which weights are kept, by validation. Exact match and field F1 take answers: slower.",
        "select",
        SELECTED_BY,
    ),
    Knob(
        "selection_conversations",
        _training("schedule", "selection_conversations"),
        SCHEDULE,
        "Answers a validation",
        "Validation conversations at most, where exact match or field F1 decides.",
    ),
    Knob(
        "patience",
        _training("schedule", "patience"),
        SCHEDULE,
        "Patience",
        "Validations without improvement that end the training; empty for all steps.",
        optional=True,
        empty="all steps",
    ),
    Knob(
        "min_delta",
        _training("schedule", "min_delta"),
        SCHEDULE,
        "Improvement above",
        "Less does not count for patience: nats of loss and KL, points of the others.",
        "float",
    ),
    Knob(
        "snapshot_every",
        _training("schedule", "snapshot_every"),
        SCHEDULE,
        "Snapshot every",
        "Steps. A lost worker costs at most so many.",
    ),
    Knob(
        "max_train_conversations",
        _training("max_train_conversations"),
        SCHEDULE,
        "Conversations at most",
        "Trains on the first of them; empty for all.",
        optional=True,
    ),
    Knob("seed", _training("seed"), SCHEDULE, "Seed", "Order of the data and dropout."),
    Knob(
        "micro_batch_size",
        _training("schedule", "micro_batch_size"),
        WEIGHTS,
        "Micro-batch size",
        "Conversations in memory at once; the gradient is added up. Empty: as many as fit.",
        optional=True,
        empty="as many as fit",
    ),
    Knob(
        "gradient_checkpointing",
        _training("gradient_checkpointing"),
        WEIGHTS,
        "Gradient checkpointing",
        "Computes layers twice to hold less in memory. Losses stay the same.",
        "flag",
    ),
    Knob(
        "packing",
        _training("schedule", "packing"),
        WEIGHTS,
        "Packing",
        "Short conversations share a row, none sees another. Less padding, the same losses.",
        "flag",
    ),
    Knob(
        "ranks",
        _training("schedule", "ranks"),
        WEIGHTS,
        "Processes",
        "They share each step, on one graphics card each. Losses stay the same.",
    ),
    Knob(
        "min_lr_ratio",
        _training("schedule", "min_lr_ratio"),
        WEIGHTS,
        "Last learning rate",
        "Share of the highest that the cosine falls to.",
        "float",
    ),
    Knob(
        "weight_decay",
        _training("schedule", "weight_decay"),
        WEIGHTS,
        "Weight decay",
        "On matrices only.",
        "float",
    ),
    Knob(
        "beta1",
        _training("schedule", "betas", "0"),
        WEIGHTS,
        "Beta 1",
        "AdamW, first moment.",
        "float",
    ),
    Knob(
        "beta2",
        _training("schedule", "betas", "1"),
        WEIGHTS,
        "Beta 2",
        "AdamW, second moment.",
        "float",
    ),
    Knob(
        "max_grad_norm",
        _training("schedule", "max_grad_norm"),
        WEIGHTS,
        "Gradient norm at most",
        "Longer gradients are shortened to it.",
        "float",
    ),
    Knob(
        "top_layers",
        _training("trainable", "top_layers"),
        WEIGHTS,
        "Top layers only",
        "Train the last so many layers; empty for all.",
        optional=True,
    ),
    Knob(
        "freeze_embeddings",
        _training("trainable", "freeze_embeddings"),
        WEIGHTS,
        "Freeze embeddings",
        "And a head tied to them. Saves memory, and is safer on little data.",
        "flag",
    ),
    Knob(
        "precision",
        _training("precision"),
        WEIGHTS,
        "Precision",
        "Of the forward pass; weights stay float32.",
        "select",
        _PRECISION,
    ),
    Knob(
        "loss_chunk_tokens",
        _training("loss_chunk_tokens"),
        WEIGHTS,
        "Loss chunk",
        "Tokens whose logits exist at once. Smaller needs less memory.",
    ),
    Knob(
        "max_tokens",
        _training("render", "max_tokens"),
        DATA,
        "Tokens at most",
        "Of a conversation. The oldest turns are cut, the system message stays.",
    ),
    Knob(
        "targets",
        _training("render", "targets"),
        DATA,
        "Turns to learn",
        "Turns that a log line flags are never targets.",
        "select",
        _TURNS,
    ),
    Knob(
        "profile",
        ("capture", "name"),
        CACHE,
        "Profile",
        "The bucket is the mass of the rest; samples serve forward KL at temperature 1 alone.",
        "select",
        _PROFILES,
        teacher_only=True,
    ),
    Knob(
        "head_mass",
        ("capture", "head_mass"),
        CACHE,
        "Head mass",
        "A row keeps the likeliest tokens until they hold this share.",
        "float",
        teacher_only=True,
    ),
    Knob(
        "k_min",
        ("capture", "k_min"),
        CACHE,
        "Tokens a row, at least",
        "Kept even where one token holds all.",
        teacher_only=True,
    ),
    Knob(
        "k_max",
        ("capture", "k_max"),
        CACHE,
        "Tokens a row, at most",
        "The rest is one bucket with the exact mass.",
        teacher_only=True,
    ),
    Knob(
        "tail_samples",
        ("capture", "tail_samples"),
        CACHE,
        "Samples of the rest",
        "Drawn for each token by the profile sampled; 0 for the others.",
        teacher_only=True,
    ),
    Knob(
        "temperatures",
        ("capture", "temperatures"),
        CACHE,
        "Temperature grid",
        "Normalisers stored, with commas. Another grid is another cache.",
        "grid",
        teacher_only=True,
    ),
    Knob("split", ("evaluation", "split"), EVALUATION, "Split", "Held out.", "select", _SPLITS),
    Knob(
        "truth",
        ("evaluation", "truth"),
        EVALUATION,
        "Truth",
        "What generated answers are compared with.",
        "select",
        _TRUTH,
    ),
    Knob(
        "max_new_tokens",
        ("evaluation", "max_new_tokens"),
        EVALUATION,
        "Answer tokens at most",
        "A longer answer is cut, and then wrong.",
    ),
    Knob(
        "evaluation_batch_size",
        ("evaluation", "batch_size"),
        EVALUATION,
        "Batch size",
        "Conversations generated together.",
    ),
    Knob(
        "max_conversations",
        ("evaluation", "max_conversations"),
        EVALUATION,
        "Conversations at most",
        "The first of the split; empty for all.",
        optional=True,
    ),
    Knob(
        "ece_bins",
        ("evaluation", "ece_bins"),
        EVALUATION,
        "Calibration bins",
        "For the ECE; each holds equally many answers.",
    ),
)
BY_NAME: dict[str, Knob] = {knob.name: knob for knob in KNOBS}
BY_PATH: dict[tuple[str, ...], str] = {knob.path: knob.name for knob in KNOBS}
GROUPS: tuple[str, ...] = (SCHEDULE, WEIGHTS, DATA, CACHE, EVALUATION)
"""Folded groups of the form; the objective's knobs stand open."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs from the parent's."""

    name: str
    label: str
    before: str
    after: str


def divergence_words(objective: Objective) -> str:
    """Return what the teacher's term measures: `forward KL`, `Jensen–Shannon β 0.5`."""
    words = dict(DIVERGENCES).get(objective.kind, "")
    if objective.kind == "jsd":
        words = f"{words} β {objective.beta:g}"
    return f"{words} to the live teacher" if objective.teacher == "live" else words


def of_group(group: str) -> list[Knob]:
    return [knob for knob in KNOBS if knob.group == group]


def values_of(spec: RunSpec) -> dict[str, str]:
    """Return a spec's settings as form fields hold them."""
    values = spec.model_dump(mode="json")
    return {knob.name: knob.typed(knob.read(values)) for knob in KNOBS}


def shown_of(spec: RunSpec) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (group, [(label, value)]) of what a run reads, for reading."""
    values = spec.model_dump(mode="json")
    objective = spec.training.objective
    needed = objective.needs_teacher
    return [
        (
            group,
            [
                (knob.label, knob.shown(knob.read(values)))
                for knob in of_group(group)
                if needed or not knob.teacher_only
            ],
        )
        for group in (OBJECTIVE, *GROUPS)
        if objective.reads_cache or group != CACHE
    ]


def changes(before: RunSpec, after: RunSpec, names: Sequence[tuple[str, str, str]]) -> list[Change]:
    """Return what differs; `names` holds (label, before, after) of what the spec names by id."""
    found = [Change(label, label, a, b) for label, a, b in names if a != b]
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for knob in KNOBS:
        one, other = knob.read(old), knob.read(new)
        if one != other:
            found.append(Change(knob.name, knob.label, knob.shown(one), knob.shown(other)))
    return found
