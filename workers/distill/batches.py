"""The only place labels are shifted: seeded order, collation, micro-batches of one step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from app.specs.training import Objective, Schedule
from workers.distill.errors import MissingRowsError, NothingToTrainError, RowCountError
from workers.distill.packing import first_fit_decreasing
from workers.distill.teacher_rows import decode, join_rows
from workers.distill.values import RenderedConversation, SparseTargets, StudentBatch, TargetRows

_LOT = 256
"""Conversations read at once when the cache is checked."""


class TeacherLookup(Protocol):
    """Teacher rows by entry. Rows are joined by what was rendered, never by step."""

    grid: tuple[float, ...]

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        """Return rows [L − 1, …] for each entry, None where there are none."""


Row = Sequence[RenderedConversation]
"""Conversations that lie behind one another in one row of a batch."""


@dataclass(frozen=True, slots=True)
class StepBatches:
    """The micro-batches of one optimiser step, or those that one of several ranks takes of it.

    `denominator` is Σ m over the whole step, known before the first backward: the loss of each
    micro-batch is divided by it, so how a step is split or dealt out changes nothing.
    """

    step: int
    micro: tuple[StudentBatch, ...]
    denominator: int
    conversations: tuple[str, ...]


class BatchSource:
    """What a step trains on: a pure function of (seed, step), so resuming needs only the step.

    The stream is one seeded permutation of the conversations after another; step s (from 0) takes
    `schedule.batch_size` of it. `cursor` is the next step; iterating advances it. `micro_size` is
    how many conversations (packed: rows) a micro-batch has, None for all; `share` is (rank, ranks).
    Both may change between steps.
    """

    def __init__(
        self,
        rendered: Sequence[RenderedConversation],
        teacher_lookup: TeacherLookup | None,
        objective: Objective,
        schedule: Schedule,
        seed: int,
        *,
        pad_id: int = 0,
    ) -> None:
        """Errors: NothingToTrainError without conversations, MissingRowsError, TemperatureError."""
        self._rendered = tuple(r for r in rendered if r.target_mask.any())
        if not self._rendered:
            raise NothingToTrainError("There is no conversation to train on.", reason="empty_set")
        self._collator = Collator(teacher_lookup, objective, pad_id=pad_id)
        self.missing_entries = 0
        """Conversations whose entry has no teacher rows: they train on their label alone."""
        if teacher_lookup is not None and objective.reads_cache:
            self.missing_entries = _check_cache(self._rendered, teacher_lookup, objective)
        self._schedule = schedule
        self._seed = seed
        self.cursor = 0
        self.micro_size = schedule.micro_batch_size
        self.share = (0, 1)

    def __len__(self) -> int:
        return len(self._rendered)

    def __iter__(self) -> Iterator[StepBatches]:
        while self.cursor < self._schedule.steps:
            step = self.step(self.cursor)
            self.cursor += 1
            yield step

    @property
    def epochs(self) -> float:
        """How often the schedule shows each conversation."""
        return self._schedule.steps * self._schedule.batch_size / len(self._rendered)

    def step(self, number: int) -> StepBatches:
        """Return the micro-batches of step `number`, counted from 0."""
        size = self._schedule.batch_size
        chosen = [self._rendered[i] for i in self._order(number * size, size)]
        rank, ranks = self.share
        return StepBatches(
            step=number,
            micro=tuple(self._collator.rows(part) for part in self._parts(chosen)[rank::ranks]),
            denominator=sum(int(r.target_mask[1:].sum()) for r in chosen),
            conversations=tuple(r.conversation_id for r in chosen),
        )

    def longest(self, count: int) -> StudentBatch:
        """Return a micro-batch of the longest conversations, one a row: what takes most memory."""
        order = sorted(self._rendered, key=lambda r: -len(r.input_ids))
        return self._collator((order * count)[:count] if len(order) < count else order[:count])

    def _parts(self, chosen: Sequence[RenderedConversation]) -> list[list[Row]]:
        """Return the rows of each micro-batch: alike in length, so that little is padding."""
        lengths = [len(c.input_ids) for c in chosen]
        if self._schedule.packing:
            packed = first_fit_decreasing(lengths, max(lengths))
            rows: list[Row] = [[chosen[i] for i in row] for row in packed]
        else:
            rows = [[c] for c in chosen]
        size = min(self.micro_size or len(rows), -(-len(rows) // self.share[1]))
        if size < len(rows):
            rows.sort(key=lambda row: -sum(len(c.input_ids) for c in row))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _order(self, start: int, count: int) -> list[int]:
        total = len(self._rendered)
        out: list[int] = []
        while len(out) < count:
            epoch, offset = divmod(start + len(out), total)
            order = np.random.default_rng([self._seed, epoch]).permutation(total)
            out += order[offset : offset + count - len(out)].tolist()
        return out


class Collator:
    """Turns rendered conversations into one StudentBatch; evaluation and training share it."""

    def __init__(
        self, teacher_lookup: TeacherLookup | None, objective: Objective, *, pad_id: int = 0
    ) -> None:
        self._lookup = teacher_lookup if objective.reads_cache else None
        if objective.reads_cache and teacher_lookup is None:
            raise MissingRowsError(
                "The objective has a teacher term, but no teacher cache was given. "
                "Precompute it, or set alpha to 0."
            )
        self._objective = objective
        self._pad_id = pad_id

    def __call__(self, conversations: Sequence[RenderedConversation]) -> StudentBatch:
        """Return the batch of conversations that have a row each; see `rows`."""
        return self.rows([[c] for c in conversations])

    def rows(self, rows: Sequence[Row]) -> StudentBatch:
        """Return the right-padded batch [B, L] and its N supervised positions, labels shifted.

        Position t of a conversation predicts token t + 1 of the same conversation and joins teacher
        row t. Where an entry has no teacher rows its tokens keep their label only (alpha 0).
        """
        length = max(sum(len(c.input_ids) for c in row) for row in rows)
        shape = (len(rows), length)
        input_ids = np.full(shape, self._pad_id, dtype=np.int64)
        attention = np.zeros(shape, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int64)
        positions, labels, steps = [], [], []
        for number, row in enumerate(rows):
            start = 0
            for document, conversation in enumerate(row):
                stop = start + len(conversation.input_ids)
                input_ids[number, start:stop] = conversation.input_ids
                attention[number, start:stop] = 1
                documents[number, start:stop] = document
                predicted = np.flatnonzero(conversation.target_mask)
                predicted = predicted[predicted > 0]
                steps.append(predicted - 1)
                positions.append(number * length + start + predicted - 1)
                labels.append(conversation.input_ids[predicted].astype(np.int64))
                start = stop
            documents[number, start:] = len(row)
        teacher, alpha = self._teacher([c for row in rows for c in row], steps)
        packed = any(len(row) > 1 for row in rows)
        return StudentBatch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention),
            positions=torch.from_numpy(np.concatenate(positions)),
            labels=torch.from_numpy(np.concatenate(labels)),
            alpha=alpha,
            teacher=teacher,
            documents=torch.from_numpy(documents) if packed else None,
        )

    def _teacher(
        self, conversations: Sequence[RenderedConversation], steps: list[np.ndarray]
    ) -> tuple[SparseTargets | None, torch.Tensor]:
        total = sum(len(s) for s in steps)
        if self._lookup is None:  # a live teacher has a row for every token
            return None, torch.full((total,), self._objective.alpha)
        found = self._lookup.rows([c.entry for c in conversations])
        parts, alpha = [], []
        for conversation, rows, wanted in zip(conversations, found, steps, strict=True):
            if rows is None:
                parts.append(_no_rows(len(wanted), len(self._lookup.grid)))
                alpha.append(np.zeros(len(wanted), dtype=np.float32))
                continue
            if len(rows.ids) != len(conversation.input_ids) - 1:
                raise RowCountError(
                    f"Entry {conversation.entry[:12]} has {len(conversation.input_ids)} tokens but "
                    f"{len(rows.ids)} teacher rows. Capture it again."
                )
            parts.append(rows.take(wanted))
            alpha.append(np.full(len(wanted), self._objective.alpha, dtype=np.float32))
        joined = join_rows(parts)
        objective = self._objective
        targets = decode(
            joined, objective.temperature, self._lookup.grid, samples=objective.fits_samples
        )
        has_rows = torch.from_numpy(joined.ids[:, 0] >= 0)
        log_w = torch.where(has_rows[:, None], targets.log_w, -torch.inf)
        return replace(targets, log_w=log_w), torch.from_numpy(np.concatenate(alpha))


def _no_rows(count: int, grid: int) -> TargetRows:
    return TargetRows(
        ids=np.full((count, 1), -1, dtype=np.int64),
        logp=np.full((count, 1), -np.inf, dtype=np.float32),
        log_r=np.full((count, grid), -np.inf, dtype=np.float32),
        entropy=np.zeros(count, dtype=np.float32),
    )


def _check_cache(
    rendered: Sequence[RenderedConversation], lookup: TeacherLookup, objective: Objective
) -> int:
    """Return how many conversations lack rows; refuse a foreign temperature and an empty cache.

    Reading all rows once costs a second for a million tokens, and finds a damaged shard before any
    training is spent.
    """
    missing = 0
    for start in range(0, len(rendered), _LOT):
        found = lookup.rows([r.entry for r in rendered[start : start + _LOT]])
        missing += sum(rows is None for rows in found)
        present = next((rows for rows in found if rows is not None), None)
        if start == 0 and present is not None:
            decode(present, objective.temperature, lookup.grid)
    if missing == len(rendered):
        raise MissingRowsError(
            f"The teacher cache holds none of the {missing} conversations, so nothing would be "
            "distilled. Precompute it for this dataset version and these rendering settings."
        )
    return missing
