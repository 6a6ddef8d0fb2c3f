"""The teacher cache as rows: spaces, shards, entries; the first writer of an entry wins."""

import time
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.fingerprint import fingerprint
from app.specs.jobs import PrecomputeJob
from app.specs.teacher import CacheReport, CacheSpace, CaptureProfile
from app.storage.blobs import LocalBlobs
from app.teacher_cache.models import CacheCoverage, CacheEntry, CacheShard, CacheSpaceRow

FOLDER = "teacher_cache"
UNNAMED_SECONDS = 86_400
"""A shard's file that no row names is left alone this long: its row may be about to be written."""

log = structlog.get_logger()


def space_of(teacher: CheckpointCard, profile: CaptureProfile) -> CacheSpace:
    """Return the space that a teacher's rows under a profile lie in.

    Of one behind a server, URL and model stand for the weights. One without a tokenizer gives no
    rows: its space stays empty.
    """
    served: dict[str, Any] = {"dtype": "served", "attention": "served"} if teacher.server else {}
    return CacheSpace(
        weights_fingerprint=teacher.weights_fingerprint,
        tokenizer_fingerprint=teacher.tokenizer_fingerprint or "",
        vocabulary=teacher.tokenizer_entries or 0,
        profile=profile,
        **served,
    )


def open_space(session: Session, space: CacheSpace, *, teacher_id: int) -> None:
    """Make the space's row when it is not there."""
    row = {"address": space.address, "spec": space.model_dump(mode="json")}
    session.execute(
        insert(CacheSpaceRow).values(**row, teacher_id=teacher_id).on_conflict_do_nothing()
    )


def shard_paths(session: Session, address: str, settings: Settings) -> list[Path]:
    """Return the files that hold a space's entries."""
    blobs = LocalBlobs(settings.blobs)
    keys = session.scalars(
        select(CacheShard.blob).where(CacheShard.space == address).order_by(CacheShard.id)
    )
    return [blobs.path(key).absolute() for key in keys]


def shards(session: Session, address: str, settings: Settings) -> dict[Path, tuple[str, ...]]:
    """Return the files of a space, oldest first, each with the entries that are read from it."""
    blobs = LocalBlobs(settings.blobs)
    rows = session.execute(
        select(CacheShard.blob, func.array_remove(func.array_agg(CacheEntry.entry), None))
        .outerjoin(CacheEntry, CacheEntry.shard_id == CacheShard.id)
        .where(CacheShard.space == address)
        .group_by(CacheShard.id)
        .order_by(CacheShard.id)
    )
    return {blobs.path(blob).absolute(): tuple(entries) for blob, entries in rows}


def add_shard(session: Session, payload: dict[str, Any], *, fence: int, settings: Settings) -> None:
    """Take a finished shard: its file becomes a blob named by its hash, its entries rows."""
    blob = f"{FOLDER}/{payload['space']}/{payload['shard']}"
    # A second name of the file is moved: the child that made it may still read its own.
    link = Path(payload["file"] + ".blob")
    link.unlink(missing_ok=True)
    link.hardlink_to(payload["file"])
    LocalBlobs(settings.blobs).put_file(link, blob)
    shard = CacheShard(
        space=payload["space"],
        sha256=payload["shard"],
        blob=blob,
        bytes=payload["bytes"],
        rows=payload["rows"],
        fence=fence,
    )
    session.add(shard)
    session.flush()
    rows = [
        {
            "space": payload["space"],
            "entry": entry["entry"],
            "shard_id": shard.id,
            "position": entry["index"],
            "rows": entry["rows"],
        }
        for entry in payload["entries"]
    ]
    session.execute(insert(CacheEntry).on_conflict_do_nothing(), rows)


def forget(session: Session, address: str) -> None:
    """Drop what a space holds and what was measured of it; the next capture starts anew.

    The files stay until a sweep: a training that has them open reads on.
    """
    for table in (CacheEntry, CacheCoverage, CacheShard):
        session.execute(delete(table).where(table.space == address))
    session.execute(
        update(CacheSpaceRow).where(CacheSpaceRow.address == address).values(report=None)
    )


def remove_space(session: Session, address: str) -> None:
    """Remove a space with all rows; once that is committed, `drop_files` removes its files."""
    session.execute(delete(CacheSpaceRow).where(CacheSpaceRow.address == address))


def drop_files(session: Session, address: str, settings: Settings) -> None:
    """Remove the files of a removed space; nothing happens where it is there (again)."""
    if session.get(CacheSpaceRow, address) is None:
        LocalBlobs(settings.blobs).delete(f"{FOLDER}/{address}")


def sweep(session: Session, settings: Settings) -> None:
    """Remove shards that nothing is read from, and the files that no row names.

    Of an entry captured twice the first row counts, so a whole shard may be for nothing. Who has a
    file open reads on.
    """
    read = select(CacheEntry.shard_id).where(CacheEntry.shard_id == CacheShard.id)
    session.execute(delete(CacheShard).where(~read.exists()))
    root = settings.blobs / FOLDER
    if not root.is_dir():
        return
    known = set(session.scalars(select(CacheShard.blob)))
    oldest = time.time() - UNNAMED_SECONDS
    for path in root.glob("*/*"):
        if str(path.relative_to(settings.blobs)) in known or path.stat().st_mtime > oldest:
            continue
        path.unlink(missing_ok=True)
        log.info("shard_removed", space=path.parent.name, shard=path.name)


def drop_shard(session: Session, address: str, sha256: str) -> None:
    """Forget a damaged shard: what was read from it counts as missing until captured again.

    Which versions lost it is not known here, so it is counted for each.
    """
    this = (CacheShard.space == address, CacheShard.sha256 == sha256)
    entries, rows = session.execute(
        select(func.count(), func.coalesce(func.sum(CacheEntry.rows), 0))
        .join(CacheShard, CacheShard.id == CacheEntry.shard_id)
        .where(*this)
    ).one()
    session.execute(delete(CacheShard).where(*this))
    session.execute(
        update(CacheCoverage)
        .where(CacheCoverage.space == address)
        .values(
            cached=func.greatest(0, CacheCoverage.cached - entries),
            missing_rows=func.least(CacheCoverage.rows, CacheCoverage.missing_rows + rows),
        )
    )


def _together(before: CacheReport | None, found: CacheReport) -> CacheReport:
    """Return the last capture's report with means over all rows that captures have measured.

    One that checked nothing leaves the last check standing.
    """
    new = found.new_rows if found.captured_mass else 0
    if before is None:
        return found.model_copy(update={"measured_rows": new})
    old = before.measured_rows
    grid = found.captured_mass if new else before.captured_mass
    share = new / max(old + new, 1)

    def mean(was: float, measured: float) -> float:
        return (1 - share) * was + share * measured

    return found.model_copy(
        update={
            "measured_rows": old + new,
            "captured_mass": {
                t: mean(before.captured_mass.get(t, m), found.captured_mass.get(t, m))
                for t, m in grid.items()
            },
            "mean_entropy": mean(before.mean_entropy, found.mean_entropy),
            "faithfulness": found.faithfulness or before.faithfulness,
        }
    )


def captured(session: Session, address: str, job: PrecomputeJob, found: CacheReport) -> None:
    """Keep what a capture measured (mass, entropy, faithfulness) and what it now covers.

    A part of a shared capture measured its share, and covers nothing by itself; nor does one for a
    run that trains on some conversations only.
    """
    row = session.get(CacheSpaceRow, address, with_for_update=True)
    if row is None:
        return
    before = CacheReport.model_validate(row.report) if row.report is not None else None
    row.report = _together(before, found).model_dump(mode="json")
    if job.part is not None or job.max_train_conversations is not None:
        return
    covered = {
        "conversations": found.entries,
        "cached": found.entries - found.missing_entries,
        "rows": found.rows,
        "missing_rows": found.missing_rows,
    }
    key = {
        "space": address,
        "dataset_version_id": job.dataset_version_id,
        "render_key": fingerprint(job.render),
    }
    session.execute(
        insert(CacheCoverage)
        .values(**key, **covered)
        .on_conflict_do_update(
            index_elements=list(key), set_={**covered, "recorded_at": func.clock_timestamp()}
        )
    )
