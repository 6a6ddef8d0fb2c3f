"""Read the examples of an evaluation beside another one's: wins, losses and ties, worst first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.evaluations.schemas import ExampleFilter, ExampleOut, ExamplesOut
from app.metrics.registry import METRICS

Floats = NDArray[np.float64]
SCORES = ("exact_match", "field_f1", "kl", "agreement", "confidence")
TEXTS = ("prompt_tail", "truth", "truth_kind", "teacher_answer", "prediction", "finish_reason")
_SAME = 1e-9
"""Scores closer than this are a tie."""


def _calibration_gap(table: pa.Table) -> Floats:
    """Return how far an answer's confidence is from what it came to (1 right, 0 wrong)."""
    return np.abs(_floats(table, "confidence") - _floats(table, "exact_match"))


BY_EXAMPLE: Mapping[str, Callable[[pa.Table], Floats]] = {
    "exact_match": lambda table: _floats(table, "exact_match"),
    "field_f1": lambda table: _floats(table, "field_f1"),
    "kl": lambda table: _floats(table, "kl"),
    "agreement": lambda table: _floats(table, "agreement"),
    "ece": _calibration_gap,
}
"""Metrics that a single example has, and its score."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of both sides by row of our file; nan where there is none."""

    ours: Floats
    theirs: Floats
    gain: Floats
    """Ours over theirs, positive when ours is better."""
    right: Floats
    match: NDArray[np.int64]
    """Row of the other file, -1 where it has none."""


def read_examples(path: Path, other: Path | None, wanted: ExampleFilter) -> ExamplesOut:
    """Return a page of examples. Scores are read for all rows, texts for those shown.

    `other` is the file of an evaluation of the same set; without one there is no outcome. Worst
    first: by loss against the other, then by the score itself, then in the file's order.
    """
    table = pq.read_table(path, columns=["conversation_id", *SCORES])
    beside = pq.read_table(other, columns=["conversation_id", *SCORES]) if other else None
    scored = _score(table, beside, wanted.metric)
    wins, losses = scored.gain > _SAME, scored.gain < -_SAME
    ties = np.abs(scored.gain) <= _SAME
    kept = _kept(path, scored, wanted, {"wins": wins, "losses": losses, "ties": ties})
    order = _worst_first(scored, kept, wanted.metric)
    places = order[wanted.offset : wanted.offset + wanted.limit]
    right = scored.right == 1
    return ExamplesOut(
        metric=wanted.metric,
        against=None,
        total=len(order),
        wins=int(wins.sum()),
        losses=int(losses.sum()),
        ties=int(ties.sum()),
        ties_right=int((ties & right).sum()),
        ties_wrong=int((ties & (scored.right == 0)).sum()),
        not_scored=int(np.isnan(scored.ours).sum()),
        examples=_shown((path, other), (table, beside), scored, places, wanted.offset),
    )


def _floats(table: pa.Table, name: str) -> Floats:
    column = pc.cast(table[name], pa.float64())
    values: Floats = column.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _score(table: pa.Table, beside: pa.Table | None, metric: str) -> _Scored:
    score = BY_EXAMPLE[metric]
    ours, right = score(table), _floats(table, "exact_match")
    nothing = np.full(len(ours), np.nan)
    match = np.full(len(ours), -1, np.int64)
    if beside is None:
        return _Scored(ours, nothing, nothing, right, match)
    place = {name: i for i, name in enumerate(beside["conversation_id"].to_pylist())}
    match = np.array([place.get(i, -1) for i in table["conversation_id"].to_pylist()], np.int64)
    theirs = np.where(match >= 0, score(beside)[match], np.nan) if len(beside) else nothing
    sign = -1.0 if _lower_is_better(metric) else 1.0
    return _Scored(ours, theirs, sign * (ours - theirs), right, match)


def _lower_is_better(metric: str) -> bool:
    return METRICS[metric].direction == "lower"


def _kept(
    path: Path, scored: _Scored, wanted: ExampleFilter, outcomes: Mapping[str, NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    kept = outcomes.get(wanted.outcome, np.ones(len(scored.ours), np.bool_))
    if wanted.wrong:
        kept = kept & (scored.right == 0)
    if wanted.search:
        texts = pq.read_table(path, columns=["prompt_tail", "prediction", "truth"])
        hit = np.zeros(len(kept), np.bool_)
        for name in texts.column_names:
            found = pc.match_substring(texts[name], wanted.search, ignore_case=True)
            hit |= (
                pc.fill_null(found, fill_value=False)
                .combine_chunks()
                .to_numpy(zero_copy_only=False)
            )
        kept = kept & hit
    return kept


def _worst_first(scored: _Scored, kept: NDArray[np.bool_], metric: str) -> NDArray[np.int64]:
    """Return the rows kept: greatest loss first, then the worst score; those without one last."""
    own = -scored.ours if _lower_is_better(metric) else scored.ours
    order = np.lexsort((np.nan_to_num(own, nan=np.inf), np.nan_to_num(scored.gain, nan=np.inf)))
    return order[kept[order]]


def _shown(
    paths: tuple[Path, Path | None],
    tables: tuple[pa.Table, pa.Table | None],
    scored: _Scored,
    places: NDArray[np.int64],
    offset: int,
) -> list[ExampleOut]:
    texts = [text or {} for text in _rows(paths[0], places)]
    others = _rows(paths[1], scored.match[places]) if paths[1] else [None] * len(places)
    scores = tables[0].take(places).to_pylist()
    found = []
    for n, (at, text, beside, own) in enumerate(zip(places, texts, others, scores, strict=True)):
        match = int(scored.match[at])
        theirs = tables[1].slice(match, 1).to_pylist()[0] if tables[1] and match >= 0 else {}
        found.append(
            ExampleOut(
                place=offset + n + 1,
                conversation_id=own["conversation_id"],
                prompt_tail=text["prompt_tail"],
                truth=text["truth"],
                truth_kind=text["truth_kind"],
                logged_answer=text["teacher_answer"],
                prediction=text["prediction"],
                other_prediction=beside["prediction"] if beside else None,
                score=_plain(scored.ours[at]),
                other_score=_plain(scored.theirs[at]),
                scores={name: _number(own[name]) for name in SCORES},
                other_scores={name: _number(theirs.get(name)) for name in SCORES},
                tokens=text["tokens"],
                finish_reason=text["finish_reason"],
                outcome=_outcome(scored.gain[at]),
            )
        )
    return found


def _rows(path: Path, places: NDArray[np.int64]) -> list[dict[str, Any] | None]:
    """Return the texts of some rows, None for -1; row groups without one are not read."""
    file = pq.ParquetFile(path)
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        inside = places[(places >= start) & (places < start + count)]
        if len(inside):
            table = file.read_row_group(group, columns=[*TEXTS, "tokens"])
            rows = table.take(pa.array(inside - start)).to_pylist()
            found.update(zip(inside.tolist(), rows, strict=True))
        start += count
    return [found.get(int(place)) for place in places]


def _outcome(gain: float) -> Any:
    if np.isnan(gain):
        return None
    return "tie" if abs(gain) <= _SAME else "win" if gain > 0 else "loss"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _number(value: float | bool | None) -> float | None:  # noqa: FBT001 - a Parquet value
    return None if value is None else float(value)
