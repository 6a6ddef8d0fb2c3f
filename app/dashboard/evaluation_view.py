"""The evaluation report as values: metrics beside the teacher's, examples with a word diff."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.evaluations import queries, service
from app.evaluations.comparing import Compared, compare_rows
from app.evaluations.examples import BY_EXAMPLE
from app.evaluations.models import Evaluation
from app.evaluations.schemas import Choice, ExampleFilter, ExampleOut, ExamplesOut, Outcome
from app.metrics.comparison import Cell, Difference, reasons_of
from app.metrics.registry import METRICS, Metric
from app.metrics.verdicts import Reason, tolerance_words
from app.projects.models import Project
from app.settings import Settings
from app.web.filters import with_query
from app.web.worddiff import Piece, word_diff

TO_TEACHER = frozenset({"kl", "agreement"})
"""Metrics that measure the distance to the teacher: its own value follows from what they are."""
OUTCOMES: tuple[tuple[Outcome, str], ...] = (
    ("all", "All"),
    ("losses", "▼ Losses"),
    ("wins", "▲ Wins"),
    ("ties", "= Ties"),
)


@dataclass(frozen=True, slots=True)
class MetricLine:
    metric: Metric
    decides: bool
    cell: Cell
    teacher: Cell | None
    delta: Difference | None
    """To the teacher; None where it means nothing."""
    base: Cell | None
    """Of the undistilled student."""
    href: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """Metrics and verdict of an evaluation that is done."""

    compared: Compared
    name: str
    lines: tuple[MetricLine, ...]
    sentences: tuple[str, ...]
    verdict: Difference | None
    tolerance: str

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return reasons_of(line.delta for line in self.lines)


@dataclass(frozen=True, slots=True)
class ExampleView:
    """An example; pieces of its texts, marked where they differ from the one beside them."""

    example: ExampleOut
    prompt: str
    """The address of all of it."""
    truth: list[Piece] | None
    """What the answer lacks is marked; the logged answer where there is no reference."""
    ours: list[Piece]
    theirs: list[Piece] | None


@dataclass(frozen=True, slots=True)
class ExamplesView:
    found: ExamplesOut
    views: tuple[ExampleView, ...]
    wanted: ExampleFilter
    other: Evaluation | None
    others: Sequence[Evaluation]
    """Evaluations of the same set, to stand beside."""
    metrics: tuple[Metric, ...]
    path: str

    def link(self, **changes: Any) -> str:
        """Return the address with another filter; a change starts at the first page."""
        fields = {**self._query(), "offset": None, **changes}
        return f"{with_query(self.path, {}, **fields)}#examples"

    def _query(self) -> dict[str, Any]:
        plain = ExampleFilter()
        given = self.wanted.model_dump(exclude={"limit"})
        return {
            key: ("1" if value is True else value)
            for key, value in given.items()
            if value != getattr(plain, key)
        } | {"metric": self.wanted.metric}

    @property
    def tabs(self) -> list[tuple[str, str, bool]]:
        counts = {
            "all": None,
            "losses": self.found.losses,
            "wins": self.found.wins,
            "ties": self.found.ties,
        }
        return [
            (
                label if counts[key] is None else f"{label} {counts[key]:,}",
                self.link(outcome=None if key == "all" else key),
                key == self.wanted.outcome,
            )
            for key, label in OUTCOMES
        ]

    @property
    def before(self) -> str | None:
        at = self.wanted.offset
        return self.link(offset=max(0, at - self.wanted.limit) or None) if at else None

    @property
    def after(self) -> str | None:
        end = self.wanted.offset + len(self.views)
        return self.link(offset=end) if end < self.found.total else None


def report_of(session: Session, project: Project, found: Evaluation) -> Report:
    """Return metrics beside those of the set's teacher and undistilled student."""
    choice = Choice(evaluations=(found.id,))
    compared = compare_rows(session, project, choice)
    comparison = compared.comparison
    row = next(r for r in compared.rows if r.evaluation is not None and r.evaluation.id == found.id)
    rows = {r.name: r.cells() for r in comparison.rows}
    teacher = comparison.teacher.name if comparison.teacher else None
    base = next((r.name for r in comparison.rows if r.role == "undistilled"), None)
    lines = []
    for key, cell in rows[row.name].items():
        decides = key == comparison.deciding_metric
        of_teacher = key in TO_TEACHER and not decides
        other = None if teacher in (None, row.name) or of_teacher else teacher
        lines.append(
            MetricLine(
                metric=METRICS[key],
                decides=decides,
                cell=cell,
                teacher=rows[other].get(key) if other else None,
                delta=comparison.difference(row.name, other, key) if other else None,
                base=rows[base].get(key) if base and base != row.name else None,
                href=f"?metric={key}#examples" if key in BY_EXAMPLE else None,
            )
        )
    lines.sort(key=lambda line: (not line.decides, list(METRICS).index(line.metric.name)))
    own = [
        d
        for d in comparison.differences
        if d.a == row.name and d.metric == comparison.deciding_metric
    ]
    return Report(
        compared=compared,
        name=row.name,
        lines=tuple(lines),
        sentences=tuple(d.sentence for d in own),
        verdict=next((d for d in own if d.b == teacher), None),
        tolerance=tolerance_words(comparison.deciding_metric, comparison.tolerance),
    )


def examples_of(
    session: Session, found: Evaluation, wanted: ExampleFilter, settings: Settings, path: str
) -> ExamplesView:
    """Return a page of examples with their diffs, and what may stand beside them."""
    shown = service.examples(session, found, wanted, settings)
    others = [e for e in queries.of_set(session, found.project_id, found.set_key) if e is not found]
    return ExamplesView(
        found=shown,
        views=tuple(
            _view(example, f"{path}/prompts/{example.conversation_id}")
            for example in shown.examples
        ),
        wanted=wanted,
        other=next((e for e in others if e.id == shown.against), None),
        others=others,
        metrics=tuple(METRICS[name] for name in BY_EXAMPLE),
        path=path,
    )


def _view(example: ExampleOut, prompt: str) -> ExampleView:
    """Diff both answers against the truth; without one, ours against the other."""
    theirs = example.other_prediction
    if example.truth is not None:
        truth, ours = word_diff(example.truth, example.prediction)
        beside = word_diff(example.truth, theirs)[1] if theirs is not None else None
        return ExampleView(example, prompt, truth, ours, beside)
    if theirs is not None:
        left, ours = word_diff(theirs, example.prediction)
        return ExampleView(example, prompt, None, ours, left)
    return ExampleView(example, prompt, None, [Piece(example.prediction, own=False)], None)
