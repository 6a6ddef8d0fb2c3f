"""Read uploads, datasets, versions, and the conversations and rejects in their files."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session, contains_eager

from app.checkpoints.models import Checkpoint
from app.datasets.models import Dataset, DatasetVersion, Upload
from app.datasets.schemas import (
    TURN_RANGES,
    ConversationFacets,
    ConversationFilter,
    ConversationLine,
    ConversationPage,
)
from app.jobs.models import Job
from app.projects.models import Project
from app.specs.conversation import Conversation, ImportFunnel, Reject, Split
from app.specs.dataset_file import COLUMNS, from_row
from app.specs.jobs import JobKind, JobState

PAGE = 50
FILTER_COLUMNS = ["split", "has_reference", "n_turns"]
LINE_COLUMNS = [*FILTER_COLUMNS, "id", "n_messages", "n_targets", "n_chars", "first_user"]
_FIRST_USER = 240
_EXAMPLES = 3
_REJECT_BYTES = 32 << 20
"""How much of a rejects file a page reads; the whole of it is a download."""
_STRUCTURE = json.dumps(
    {
        "messages": "role system user assistant tool content tool_calls tool_call_id name",
        "more": "reasoning is_target reference finish_reason model flags arguments id true null",
    }
)
"""The words that JSON text of messages holds whatever is said: a search for one is looked at."""


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version and the job that works on it, or last did."""

    version: DatasetVersion
    job: Job | None

    @property
    def busy(self) -> bool:
        """Whether its job waits or works."""
        return self.job is not None and not JobState(self.job.state).terminal

    @property
    def freezing(self) -> bool:
        return self.busy and self.job is not None and self.job.kind == JobKind.FREEZE

    @property
    def funnel(self) -> ImportFunnel | None:
        found = self.version.funnel
        return ImportFunnel.model_validate(found) if found is not None else None


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A dataset that an import may go into."""

    name: str
    newest: int
    """Number of its newest version."""
    usable: bool
    """Whether a version of it has conversations."""


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


def cut_off_uploads(session: Session) -> Sequence[Upload]:
    """Return the uploads of every project that wait for bytes; those in use elsewhere are left."""
    return session.scalars(
        select(Upload)
        .where(Upload.state == "uploading", Upload.origin != "generated")
        .order_by(Upload.id)
        .with_for_update(skip_locked=True)
    ).all()


def open_uploads(session: Session, project_id: int) -> Sequence[Upload]:
    """Return the uploads that no import has taken, newest first."""
    taken = exists().where(
        Dataset.project_id == project_id,
        DatasetVersion.dataset_id == Dataset.id,
        DatasetVersion.import_spec["upload_ids"].contains(func.to_jsonb(Upload.id)),
    )
    return session.scalars(
        select(Upload)
        .where(Upload.project_id == project_id, ~taken.correlate(Upload))
        .order_by(Upload.id.desc())
        .limit(200)
    ).all()


def versions_with_jobs(project_id: int) -> Select[DatasetVersion, Job]:
    """Return the statement that reads a project's versions, their datasets and jobs."""
    return (
        select(DatasetVersion, Job)
        .join(DatasetVersion.dataset)
        .outerjoin(Job, Job.id == DatasetVersion.job_id)
        .where(Dataset.project_id == project_id)
        .options(contains_eager(DatasetVersion.dataset))
    )


def views(session: Session, statement: Select[DatasetVersion, Job]) -> list[VersionView]:
    return [VersionView(version, job) for version, job in session.execute(statement).unique()]


def versions_of(session: Session, project_id: int) -> list[DatasetVersion]:
    """Return versions with their datasets, newest first: one query."""
    statement = versions_with_jobs(project_id).order_by(DatasetVersion.id.desc())
    return [view.version for view in views(session, statement)]


def view(session: Session, project_id: int, version_id: int) -> VersionView | None:
    statement = versions_with_jobs(project_id).where(DatasetVersion.id == version_id)
    found = views(session, statement)
    return found[0] if found else None


def version(session: Session, project_id: int, version_id: int) -> DatasetVersion | None:
    found = view(session, project_id, version_id)
    return found.version if found is not None else None


def teacher_of(session: Session, project: Project) -> Checkpoint | None:
    return session.get(Checkpoint, project.teacher_id) if project.teacher_id is not None else None


def teacher_of_version(session: Session, version: DatasetVersion) -> Checkpoint | None:
    return session.scalar(
        select(Checkpoint)
        .join(Project, Project.teacher_id == Checkpoint.id)
        .join(Dataset, Dataset.project_id == Project.id)
        .where(Dataset.id == version.dataset_id)
    )


def datasets_of(session: Session, project_id: int) -> list[KnownDataset]:
    """Return the project's datasets, the last one imported first."""
    usable = func.bool_or(DatasetVersion.state.in_(("draft", "frozen")))
    rows = session.execute(
        select(Dataset.name, func.max(DatasetVersion.number), usable)
        .join(DatasetVersion, DatasetVersion.dataset_id == Dataset.id)
        .where(Dataset.project_id == project_id)
        .group_by(Dataset.id)
        .order_by(func.max(DatasetVersion.id).desc())
    )
    return [KnownDataset(*row) for row in rows]


def dataset_names(session: Session, project_id: int) -> set[str]:
    return set(session.scalars(select(Dataset.name).where(Dataset.project_id == project_id)))


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


def with_tokens(page: ConversationPage, counts: Path | None) -> ConversationPage:
    """Return the page with how many tokens each conversation has, where they were counted."""
    if counts is None or not counts.is_file():
        return page
    known = np.load(counts, mmap_mode="r")
    lines = [
        line.model_copy(update={"n_tokens": int(known[line.row])})
        if line.row < len(known) and known[line.row] >= 0
        else line
        for line in page.lines
    ]
    return page.model_copy(update={"lines": lines})


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
    table = file.read_row_group(group, columns=_columns(LINE_COLUMNS, wanted))
    rows = pc.greater(pa.array(range(start, start + len(table)), pa.int64()), after)
    for mask in _masks(table, wanted).values():
        rows = pc.and_(rows, mask)
    places = pc.indices_nonzero(rows)[:room]
    found = table.select(LINE_COLUMNS).take(places).to_pylist()
    for place, row in zip(places.to_pylist(), found, strict=True):
        row["first_user"] = row["first_user"][:_FIRST_USER]
        yield ConversationLine(row=start + place, **row)


def conversation_facets(path: Path, wanted: ConversationFilter) -> ConversationFacets:
    """Count what matches, and what each value of each filter would leave: one pass."""
    file = pq.ParquetFile(path)
    facets = ConversationFacets(total=file.metadata.num_rows)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("split", "reference", "turns")}
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=_columns(FILTER_COLUMNS, wanted))
        masks = _masks(table, wanted)
        facets.matching += int(pc.sum(_all(masks, len(table))).as_py() or 0)
        for name, values in _facet_values(table).items():
            others = {key: mask for key, mask in masks.items() if key != name}
            left = pc.value_counts(values.filter(_all(others, len(table)))).to_pylist()
            counts[name].update({str(item["values"]): item["counts"] for item in left})
    return facets.model_copy(update={name: dict(found) for name, found in counts.items()})


def _columns(columns: list[str], wanted: ConversationFilter) -> list[str]:
    return [*columns, "messages"] if wanted.search else columns


def _all(masks: dict[str, Any], count: int) -> Any:
    rows = pa.array([True] * count)
    for mask in masks.values():
        rows = pc.and_(rows, mask)
    return rows


def _facet_values(table: Any) -> dict[str, Any]:
    """Return, for each filter, the value that every row has."""
    turns = table["n_turns"].combine_chunks()
    named = pa.array(["0"] * len(table))
    for name, (least, _) in TURN_RANGES.items():
        named = pc.if_else(pc.greater_equal(turns, least), name, named)
    reference = pc.if_else(table["has_reference"].combine_chunks(), "true", "false")
    return {"split": table["split"].combine_chunks(), "reference": reference, "turns": named}


def _masks(table: Any, wanted: ConversationFilter) -> dict[str, Any]:
    """Return the rows that each filter asked for lets through."""
    masks: dict[str, Any] = {}
    values = _facet_values(table)
    if wanted.split is not None:
        masks["split"] = pc.equal(values["split"], wanted.split)
    if wanted.reference is not None:
        masks["reference"] = pc.equal(values["reference"], str(wanted.reference).lower())
    if wanted.turns is not None:
        masks["turns"] = pc.equal(values["turns"], wanted.turns)
    if wanted.search:
        masks["search"] = _saying(table["messages"].combine_chunks(), wanted.search)
    return masks


def _saying(messages: Any, search: str) -> Any:
    """Return where the JSON text of messages says something: its own words do not count."""
    needle = json.dumps(search, ensure_ascii=False)[1:-1]
    hits = pc.match_substring(messages, needle, ignore_case=True)
    if needle.lower() not in _STRUCTURE:
        return hits
    places = pc.indices_nonzero(hits).to_pylist()
    said = {place for place in places if _says(messages[place].as_py(), search.lower())}
    return pa.array([place in said for place in range(len(messages))])


def _says(text: str, search: str) -> bool:
    for message in json.loads(text):
        parts = [message.get(key) or "" for key in ("content", "reasoning", "reference", "name")]
        parts += [call["name"] + call["arguments"] for call in message.get("tool_calls", ())]
        if any(search in part.lower() for part in parts):
            return True
    return False


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


def conversation_called(path: Path, conversation_id: str) -> Conversation | None:
    """Return the conversation of that id: ids are read first, then one group of rows."""
    row = pc.index(pq.read_table(path, columns=["id"])["id"], conversation_id).as_py()
    return conversation_at(path, row) if row >= 0 else None


def first_conversations(path: Path, count: int, *, split: Split) -> list[Conversation]:
    """Return the first conversations of a split, in the file's order."""
    found = conversation_page(path, ConversationFilter(split=split), limit=count).lines
    shown = (conversation_at(path, line.row) for line in found)
    return [conversation for conversation in shown if conversation is not None]


def rejects(path: Path, *, reason: str | None = None, limit: int = 100) -> list[Reject]:
    """Return the first rejects (of a reason); the whole file is a download."""
    with path.open("rb") as stream:
        found = (_reject(line) for line in _head(stream))
        return list(itertools.islice((r for r in found if reason in (None, r.reason)), limit))


def reject_examples(path: Path, reasons: Sequence[str]) -> dict[str, list[Reject]]:
    """Return the first few rejects of each reason."""
    found: dict[str, list[Reject]] = {reason: [] for reason in reasons}
    missing = set(reasons)
    with path.open("rb") as stream:
        for line in _head(stream):
            if not missing:
                break
            reject = _reject(line)
            if reject.reason in missing:
                found[reject.reason].append(reject)
                if len(found[reject.reason]) == _EXAMPLES:
                    missing.discard(reject.reason)
    return found


def _head(stream: Any) -> Iterator[bytes]:
    read = 0
    for line in stream:
        read += len(line)
        if read > _REJECT_BYTES:
            return
        yield line


def _reject(line: bytes) -> Reject:
    known = Reject.model_fields
    return Reject.model_validate({k: v for k, v in orjson.loads(line).items() if k in known})
