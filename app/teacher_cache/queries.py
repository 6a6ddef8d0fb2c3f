"""Read what the teacher cache holds and covers. Only captures know: the web renders no ids."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.specs.fingerprint import fingerprint
from app.specs.teacher import CacheReport
from app.specs.training import RenderSpec
from app.teacher_cache.models import CacheCoverage, CacheShard, CacheSpaceRow


@dataclass(frozen=True, slots=True)
class SpaceSize:
    """What a space (or the whole cache) takes on disk."""

    shards: int
    rows: int
    bytes: int

    @property
    def bytes_per_row(self) -> float | None:
        return self.bytes / self.rows if self.rows else None


def coverage(
    session: Session, address: str, version_id: int, render: RenderSpec
) -> CacheCoverage | None:
    """Return what the last capture found of a version in a space; None: never captured there.

    A lower bound: captures of other versions may have filled more of it since.
    """
    return session.get(CacheCoverage, (address, version_id, fingerprint(render)))


def is_captured(session: Session, address: str, version_id: int) -> bool:
    """Return whether a version was captured in a space, however it was rendered."""
    found = select(CacheCoverage.space).where(
        CacheCoverage.space == address, CacheCoverage.dataset_version_id == version_id
    )
    return session.scalar(found.limit(1)) is not None


def rendered_size(session: Session, version_id: int, render: RenderSpec) -> CacheCoverage | None:
    """Return the newest capture that rendered a version this way, whatever the teacher."""
    return session.scalar(
        select(CacheCoverage)
        .where(
            CacheCoverage.dataset_version_id == version_id,
            CacheCoverage.render_key == fingerprint(render),
        )
        .order_by(CacheCoverage.recorded_at.desc())
        .limit(1)
    )


def size(session: Session, address: str | None = None) -> SpaceSize:
    """Return what a space takes on disk; without an address, the whole cache."""
    found = sizes(session, address).values()
    return SpaceSize(
        *(sum(getattr(s, part) for s in found) for part in ("shards", "rows", "bytes"))
    )


def sizes(session: Session, address: str | None = None) -> dict[str, SpaceSize]:
    """Return what each space that has shards takes on disk, or one alone."""
    statement = select(
        CacheShard.space, func.count(), func.sum(CacheShard.rows), func.sum(CacheShard.bytes)
    ).group_by(CacheShard.space)
    if address is not None:
        statement = statement.where(CacheShard.space == address)
    rows = session.execute(statement)
    return {name: SpaceSize(int(n), int(total), int(used)) for name, n, total, used in rows}


def report(session: Session, address: str) -> CacheReport | None:
    """Return what the last capture of a space measured: mass per T, entropy, faithfulness."""
    row = session.get(CacheSpaceRow, address)
    return None if row is None or row.report is None else CacheReport.model_validate(row.report)
