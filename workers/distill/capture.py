"""Filling a teacher cache: a fixed plan, shards that finish one by one, and a check on them."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.specs.teacher import CacheReport, CacheSpace, CaptureProfile, Faithfulness
from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.errors import MissingRowsError
from workers.distill.losses.dense import dense_bucket
from workers.distill.teacher_rows import decode
from workers.distill.teacher_shards import ShardFile, ShardLookup, verify_shard, write_shard
from workers.distill.teachers import Teacher
from workers.distill.values import RenderedConversation, TargetRows

BATCH_TOKENS = 4_096
"""Tokens a forward pass takes, padding included; part of the plan, so of the bytes."""
SAMPLE_ENTRIES = 8
SAMPLE_TOKENS = 512
_CHUNK = 64
"""Positions compared at a time: their whole distributions stand in float64 beside one another."""
QUANTISATION_NATS = 1e-3
"""What storing log p in 8 bits may cost, KL per token; live against live′ may be 0 on a CPU."""
NOISE_MULTIPLE = 10.0


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Entries of one shard in writing order, cut into batches of similar length."""

    batches: tuple[tuple[str, ...], ...]

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(e for batch in self.batches for e in batch)


def plan_capture(
    rendered: Iterable[RenderedConversation],
    *,
    shard_rows: int,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[PlannedShard, ...]:
    """Return the shards for a set: a pure function of its entries, whatever is cached already.

    Entries are sorted by length (no padding wasted), then by entry. A shard closes at `shard_rows`
    rows, a batch at `batch_tokens` tokens; a longer entry stands alone.
    """
    lengths = {r.entry: len(r.input_ids) for r in rendered}
    shards: list[PlannedShard] = []
    batches: list[list[str]] = []
    rows = 0
    for entry in sorted(lengths, key=lambda e: (lengths[e], e)):
        length = lengths[entry]
        if batches and rows + length - 1 > shard_rows:
            shards.append(PlannedShard(tuple(map(tuple, batches))))
            batches, rows = [], 0
        if not batches or (len(batches[-1]) + 1) * length > batch_tokens:
            batches.append([])
        batches[-1].append(entry)
        rows += length - 1
    if batches:
        shards.append(PlannedShard(tuple(map(tuple, batches))))
    return tuple(shards)


class _Totals:
    """Sums over the rows captured: mass per temperature and entropy."""

    def __init__(self, grid: tuple[float, ...]) -> None:
        self._grid = grid
        self._mass = np.zeros(len(grid))
        self._entropy = 0.0
        self.rows = self.entries = self.bytes = 0

    def add(self, rows: TargetRows) -> None:
        self._mass += -np.expm1(rows.log_r.astype(np.float64)).sum(0)
        self._entropy += float(rows.entropy.astype(np.float64).sum())
        self.rows += len(rows.entropy)
        self.entries += 1

    @property
    def captured_mass(self) -> dict[str, float]:
        if not self.rows:
            return {}
        return {f"{t:g}": float(m / self.rows) for t, m in zip(self._grid, self._mass, strict=True)}

    @property
    def mean_entropy(self) -> float:
        return self._entropy / self.rows if self.rows else 0.0


def capture(  # noqa: PLR0913 - a core's entry: what, by whom, where to, which part
    rendered: Sequence[RenderedConversation],
    teacher: Teacher,
    space: CacheSpace,
    *,
    folder: Path,
    callbacks: Callbacks,
    cached: Collection[str] = (),
    shard_rows: int = 16_384,
    share: tuple[int, int] = (0, 1),
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[CacheReport, tuple[ShardFile, ...]]:
    """Capture what is missing of a set and publish each shard the moment it is complete.

    `cached`: entries the space holds already; a shard they cover is skipped, so a job started again
    loses at most the shard in hand, and an undisturbed one writes the same bytes. Every finished
    shard goes to `callbacks.publish` as {kind, space, shard, file, bytes, rows, entries: [{entry,
    index, offset, size, rows}]}. Stops between batches when asked to, with what is complete.
    share: (n, of): only every of-th shard of the plan, from the n-th, so that several workers make
    together the shards that one would have made.
    The report counts the whole set (or share) under entries and rows, this call's work under new_*.
    """
    held = frozenset(cached)
    planned = plan_capture(rendered, shard_rows=shard_rows)[share[0] :: share[1]]
    own = {entry for shard in planned for entry in shard.entries}
    by_entry = {r.entry: r for r in rendered if r.entry in own}
    missing_rows = sum(len(r.input_ids) - 1 for e, r in by_entry.items() if e not in held)
    totals = _Totals(space.profile.temperatures)
    files: list[ShardFile] = []
    made: set[str] = set()
    started = clock()
    callbacks.phase("capture")
    for shard in planned:
        wanted = tuple(
            kept for batch in shard.batches if (kept := tuple(e for e in batch if e not in held))
        )
        if not wanted:
            continue
        items = _score(wanted, by_entry, teacher, space.profile, callbacks)
        if items is None:
            break
        written = write_shard(
            folder,
            items,
            vocabulary=space.vocabulary,
            grid=space.profile.temperatures,
            value_bytes=space.profile.value_bytes,
        )
        verify_shard(written.path)
        files.append(written)
        for entry, _, rows in items:
            totals.add(rows)
            made.add(entry)
        totals.bytes += written.bytes
        callbacks.publish(_payload(written, space))
        callbacks.progress(totals.rows, missing_rows, "tokens")
    left = {e: r for e, r in by_entry.items() if e not in held and e not in made}
    report = _report(by_entry.values(), left.values(), totals, clock() - started)
    return report, tuple(files)


def nothing_missing(rendered: Sequence[RenderedConversation]) -> CacheReport:
    """Return the report of a capture that found every entry of a set in the cache."""
    unique = {r.entry: r for r in rendered}
    return _report(unique.values(), (), _Totals(()), 0.0)


def check_faithfulness(
    rendered: Sequence[RenderedConversation],
    teacher: Teacher,
    profile: CaptureProfile,
    shards: Sequence[Path],
) -> Faithfulness:
    """Re-score a fixed sample live, twice, and compare what is stored with it.

    Live is each sequence alone, live′ the whole sample in one padded batch: what they differ by is
    the noise any live teacher has. At most SAMPLE_TOKENS tokens are compared, of a longer
    conversation the first. Errors: MissingRowsError where the shards lack the sample.
    """
    sample = _sample(rendered)
    with ShardLookup(shards, profile.temperatures) as lookup:
        stored = _all_found(sample, lookup)
    again = teacher.capture([r.input_ids for r in sample], profile)
    live_live = stored_live = 0.0
    tokens = 0
    for one, rows, other in zip(sample, stored, again, strict=True):
        # The ids stay whole: some position embeddings depend on how long the text is.
        left = min(len(one.input_ids), SAMPLE_TOKENS) - 1
        done = 0
        for live in teacher.log_probs([one.input_ids], chunk=_CHUNK):
            part = slice(done, min(done + len(live), left))
            live = live[: part.stop - done]  # noqa: PLW2901 - what lies beyond is not compared
            stored_live += _kl_sum(rows.take(part), live, profile)
            live_live += _kl_sum(other.take(part), live, profile)
            done = part.stop
            if done == left:
                break
        tokens += done
    # Rounding may leave a sum just below 0, which no divergence is.
    stored_live, live_live = max(stored_live / tokens, 0.0), max(live_live / tokens, 0.0)
    limit = max(NOISE_MULTIPLE * live_live, QUANTISATION_NATS)
    passed = bool(stored_live <= limit)
    verdict = "faithful" if passed else "not faithful"
    return Faithfulness(
        tokens=tokens,
        stored_live=stored_live,
        live_live=live_live,
        passed=passed,
        sentence=(
            f"Stored rows differ from the live teacher by {stored_live:.2g} nats a token over "
            f"{tokens} tokens (limit {limit:.2g}; the live teacher differs from itself by "
            f"{live_live:.2g}): {verdict}."
        ),
    )


def _score(
    batches: Sequence[tuple[str, ...]],
    by_entry: dict[str, RenderedConversation],
    teacher: Teacher,
    profile: CaptureProfile,
    callbacks: Callbacks,
) -> list[tuple[str, int, TargetRows]] | None:
    """Return (entry, L, rows) of a shard's batches, or None where stopping was asked for."""
    items: list[tuple[str, int, TargetRows]] = []
    for batch in batches:
        if callbacks.should_stop():
            return None
        ids: list[NDArray[np.int32]] = [by_entry[e].input_ids for e in batch]
        try:
            rows = teacher.capture(ids, profile)
        except Stopped:
            return None
        items += [(e, len(i), r) for e, i, r in zip(batch, ids, rows, strict=True)]
    return items


def _report(
    rendered: Collection[RenderedConversation],
    left: Collection[RenderedConversation],
    totals: _Totals,
    seconds: float,
) -> CacheReport:
    return CacheReport(
        entries=len(rendered),
        rows=sum(len(r.input_ids) - 1 for r in rendered),
        missing_entries=len(left),
        missing_rows=sum(len(r.input_ids) - 1 for r in left),
        new_entries=totals.entries,
        new_rows=totals.rows,
        bytes=totals.bytes,
        seconds=seconds,
        captured_mass=totals.captured_mass,
        mean_entropy=totals.mean_entropy,
    )


def _payload(written: ShardFile, space: CacheSpace) -> dict[str, object]:
    return {
        "kind": "teacher_shard",
        "space": space.address,
        "shard": written.sha256,
        "file": str(written.path),
        "bytes": written.bytes,
        "rows": written.rows,
        "entries": [
            {"entry": e.entry, "index": e.index, "offset": e.offset, "size": e.size, "rows": e.rows}
            for e in written.entries
        ],
    }


def _sample(rendered: Sequence[RenderedConversation]) -> list[RenderedConversation]:
    """Return the first entries by address (a fixed, arbitrary order) within the token budget."""
    unique = {r.entry: r for r in rendered if len(r.input_ids) > 1}
    chosen: list[RenderedConversation] = []
    for entry in sorted(unique):
        tokens = sum(len(r.input_ids) for r in chosen)
        if chosen and tokens + len(unique[entry].input_ids) > SAMPLE_TOKENS:
            continue
        chosen.append(unique[entry])
        if len(chosen) == SAMPLE_ENTRIES:
            break
    return chosen


def _all_found(sample: list[RenderedConversation], lookup: ShardLookup) -> list[TargetRows]:
    found = lookup.rows([r.entry for r in sample])
    rows = [r for r in found if r is not None]
    if not rows or len(rows) != len(sample):
        raise MissingRowsError(
            f"The teacher cache lacks {len(sample) - len(rows)} of {len(sample)} sampled entries. "
            "Finish the capture first."
        )
    return rows


def _kl_sum(rows: TargetRows, live: torch.Tensor, profile: CaptureProfile) -> float:
    """Return Σ KL(rows ‖ live) in nats at T = 1 over head and bucket, both in float64."""
    targets = decode(rows, 1.0, profile.temperatures)
    return float(dense_bucket(live, targets).sum())
