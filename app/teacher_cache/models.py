"""The teacher cache: spaces, immutable shards, and which entry lies where."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasCreated, HasId


class CacheSpaceRow(HasCreated, Base):
    """Everything that changes a row, by its address."""

    __tablename__ = "cache_spaces"

    address: Mapped[str] = mapped_column(primary_key=True)
    spec: Mapped[dict[str, Any]]
    teacher_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="SET NULL")
    )
    report: Mapped[dict[str, Any] | None]
    """CacheReport of the last capture: captured mass, entropy, faithfulness."""


class CacheShard(HasId, HasCreated, Base):
    """An immutable file named by its own SHA-256."""

    __tablename__ = "cache_shards"

    space: Mapped[str] = mapped_column(
        ForeignKey("cache_spaces.address", ondelete="CASCADE"), index=True
    )
    sha256: Mapped[str]
    blob: Mapped[str]
    bytes: Mapped[int]
    rows: Mapped[int]
    fence: Mapped[int]


class CacheCoverage(Base):
    """What a capture found of a dataset version: ids can be rendered only where a tokenizer is."""

    __tablename__ = "cache_coverages"

    space: Mapped[str] = mapped_column(
        ForeignKey("cache_spaces.address", ondelete="CASCADE"), primary_key=True
    )
    dataset_version_id: Mapped[int] = mapped_column(
        ForeignKey("dataset_versions.id", ondelete="CASCADE"), primary_key=True
    )
    render_key: Mapped[str] = mapped_column(primary_key=True)
    """Fingerprint of the RenderSpec."""
    conversations: Mapped[int]
    """Distinct rendered conversations of the train and validation splits."""
    cached: Mapped[int]
    rows: Mapped[int]
    """Teacher rows they need; a conversation of L tokens has L − 1."""
    missing_rows: Mapped[int]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class CacheEntry(Base):
    """SHA-256 of rendered ids → place in a shard; the first writer wins, others do nothing."""

    __tablename__ = "cache_entries"

    space: Mapped[str] = mapped_column(
        ForeignKey("cache_spaces.address", ondelete="CASCADE"), primary_key=True
    )
    entry: Mapped[str] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(
        ForeignKey("cache_shards.id", ondelete="CASCADE"), index=True
    )
    position: Mapped[int]
    """Index of the entry's frame in its shard."""
    rows: Mapped[int]
