"""Read uploads, datasets, versions, and the conversations and rejects in their files."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager

from app.datasets.models import Dataset, DatasetVersion, Upload
from app.datasets.schemas import ConversationFilter, ConversationLine, ConversationPage
from app.specs.conversation import Conversation, Reject, Split
from app.specs.dataset_file import COLUMNS, from_row

PAGE = 50
LINE_COLUMNS = ["id", "split", "n_messages", "n_targets", "has_reference", "first_user"]
_FIRST_USER = 240


def upload_by_key(session: Session, key: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.key == key))


def uploads_of(session: Session, project_id: int, *, limit: int = 100) -> Sequence[Upload]:
    return session.scalars(
        select(Upload)
        .where(Upload.project_id == project_id)
        .order_by(Upload.id.desc())
        .limit(limit)
    ).all()


def uploads_by_id(session: Session, project_id: int, ids: Sequence[int]) -> Sequence[Upload]:
    return session.scalars(
        select(Upload)
        .where(Upload.project_id == project_id, Upload.id.in_(ids))
        .order_by(Upload.id)
    ).all()


def versions_of(session: Session, project_id: int) -> Sequence[DatasetVersion]:
    """Return versions with their datasets, newest first: one query."""
    return (
        session.scalars(
            select(DatasetVersion)
            .join(DatasetVersion.dataset)
            .where(Dataset.project_id == project_id)
            .options(contains_eager(DatasetVersion.dataset))
            .order_by(DatasetVersion.id.desc())
        )
        .unique()
        .all()
    )


def version(session: Session, project_id: int, version_id: int) -> DatasetVersion | None:
    return session.scalar(
        select(DatasetVersion)
        .join(DatasetVersion.dataset)
        .where(Dataset.project_id == project_id, DatasetVersion.id == version_id)
        .options(contains_eager(DatasetVersion.dataset))
    )


def dataset_named(session: Session, project_id: int, name: str) -> Dataset | None:
    return session.scalar(
        select(Dataset)
        .where(Dataset.project_id == project_id, Dataset.name == name)
        .with_for_update()
    )


def last_number(session: Session, dataset_id: int) -> int:
    found = session.scalar(
        select(func.max(DatasetVersion.number)).where(DatasetVersion.dataset_id == dataset_id)
    )
    return found or 0


def conversation_page(
    path: Path, wanted: ConversationFilter, *, after: int = -1, limit: int = PAGE
) -> ConversationPage:
    """Return the lines after row `after` that match, reading one row group at a time."""
    file = pq.ParquetFile(path)
    lines: list[ConversationLine] = []
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if start + count > after + 1:
            lines += _lines(file, group, start, wanted, after, limit + 1 - len(lines))
        if len(lines) > limit:
            return ConversationPage(lines=lines[:limit], next_after=lines[limit - 1].row)
        start += count
    return ConversationPage(lines=lines, next_after=None)


def text_sizes(path: Path, *, sample: int = 200) -> tuple[float, float]:
    """Return mean characters and messages of the first conversations, to estimate tokens by."""
    file = pq.ParquetFile(path)
    if not file.num_row_groups:
        return 0.0, 0.0
    batch = next(file.iter_batches(batch_size=sample, columns=["messages"]), None)
    texts = [] if batch is None else batch.column(0).to_pylist()
    conversations = [orjson.loads(text) for text in texts]
    if not conversations:
        return 0.0, 0.0
    characters = sum(_characters(message) for c in conversations for message in c)
    messages = sum(len(c) for c in conversations)
    return characters / len(conversations), messages / len(conversations)


def _characters(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls", ())
    called = sum(len(call["name"]) + len(call["arguments"]) for call in calls)
    return len(message.get("content", "")) + called


def _lines(
    file: Any, group: int, start: int, wanted: ConversationFilter, after: int, room: int
) -> Iterator[ConversationLine]:
    table = file.read_row_group(group, columns=LINE_COLUMNS)
    rows = pc.greater(_places(len(table), start), after)
    if wanted.split is not None:
        rows = pc.and_(rows, pc.equal(table["split"], wanted.split))
    if wanted.reference is not None:
        rows = pc.and_(rows, pc.equal(table["has_reference"], wanted.reference))
    if wanted.search:
        found = pc.match_substring(table["first_user"], wanted.search, ignore_case=True)
        rows = pc.and_(rows, found)
    places = pc.indices_nonzero(rows)[:room]
    for place, row in zip(places.to_pylist(), table.take(places).to_pylist(), strict=True):
        row["first_user"] = row["first_user"][:_FIRST_USER]
        yield ConversationLine(row=start + place, **row)


def _places(count: int, start: int) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - only this helper builds an array

    return pa.chunked_array([pa.array(range(start, start + count), pa.int64())])


def conversation_at(path: Path, row: int) -> Conversation | None:
    """Return the conversation in a row of the file, or None past its end."""
    file = pq.ParquetFile(path)
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if start <= row < start + count:
            table = file.read_row_group(group, columns=list(COLUMNS)).slice(row - start, 1)
            return from_row(table.to_pylist()[0])
        start += count
    return None


def first_conversations(path: Path, count: int, *, split: Split) -> list[Conversation]:
    """Return the first conversations of a split, in the file's order."""
    found = conversation_page(path, ConversationFilter(split=split), limit=count).lines
    shown = (conversation_at(path, line.row) for line in found)
    return [conversation for conversation in shown if conversation is not None]


def first_rejects(path: Path, *, limit: int = 100) -> list[Reject]:
    """Return the first rejects; the whole file is a download."""
    with path.open("rb") as stream:
        lines = itertools.islice(stream, limit)
        known = Reject.model_fields
        return [
            Reject.model_validate({k: v for k, v in orjson.loads(line).items() if k in known})
            for line in lines
        ]
