"""Damaged shards of the teacher cache: found before use, given up, captured anew and alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.teacher_cache import service
from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.errors import CorruptShardError
from workers.distill.teacher_shards import verify_shard

DAMAGED = "damaged_shard"
Shards = Mapping[str, tuple[str, ...]]
"""Path of each shard → the entries that are read from it."""


def sound(shards: Shards, space: str, calls: Callbacks) -> dict[Path, tuple[str, ...]]:
    """Return the shards whose bytes are what was written; say which are not, and give them up.

    Errors: Stopped.
    """
    kept: dict[Path, tuple[str, ...]] = {}
    for number, (name, entries) in enumerate(shards.items(), 1):
        if calls.should_stop():
            raise Stopped("The check of the shards was stopped.")
        try:
            verify_shard(Path(name))
        except CorruptShardError as error:
            calls.log(f"{error} ({len(entries)} conversations)", "warning")
            calls.publish(_payload(space, error))
        else:
            kept[Path(name)] = entries
        calls.progress(number, len(shards), "shards")
    return kept


@contextmanager
def giving_up_damaged(space: str | None, calls: Callbacks) -> Iterator[None]:
    """Give up the shard that the body found damaged; the error goes on."""
    try:
        yield
    except CorruptShardError as error:
        if space is not None and error.shard is not None:
            calls.publish(_payload(space, error))
        raise


def give_up(session: Session, payload: Mapping[str, Any]) -> None:
    """Forget the shard that was published as damaged."""
    service.drop_shard(session, payload["space"], payload["shard"])


def _payload(space: str, error: CorruptShardError) -> dict[str, Any]:
    return {"kind": DAMAGED, "space": space, "shard": error.shard}
