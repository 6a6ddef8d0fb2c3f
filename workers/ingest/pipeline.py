"""The two doors of the importer: look at an upload, and import it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from app.specs.conversation import (
    Conversation,
    ImportFunnel,
    InspectReport,
    RecordPreview,
    Reject,
)
from app.specs.dataset_file import COLUMNS
from workers.ingest import dataset_file
from workers.ingest.canonical import canonical_json
from workers.ingest.errors import EmptyUpload, ImportStopped, UnknownFormat
from workers.ingest.fold import Folder
from workers.ingest.formats import detect, formats
from workers.ingest.reading import read_records
from workers.ingest.split import side
from workers.ingest.values import Format, LoggedCall, RawRecord, Unusable

SAMPLE, PREVIEWS, EVERY = 50, 5, 1000


class Progress(Protocol):
    """What the importer tells the world; the engine's callbacks fit."""

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def log(self, text: str, level: str = "info") -> None: ...

    def should_stop(self) -> bool: ...


def _records(paths: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[str, RawRecord]]:
    for path, name in zip(paths, names, strict=True):
        for record in read_records(path, name):
            yield name, record


def _fields(value: object, at: str = "", depth: int = 6) -> dict[str, str]:
    if isinstance(value, dict) and depth:
        found: dict[str, str] = {}
        for key, item in value.items():
            found.update(_fields(item, f"{at}.{key}" if at else key, depth - 1))
        return found
    if isinstance(value, str | int | float | bool):
        return {at: str(value)[:200]}
    return {}


def _reference(record: dict[str, Any], path: str) -> str | None:
    value: Any = record.get(path)
    if value is None:
        value = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return value if isinstance(value, str) else canonical_json(value)


def _understand(
    kind: Format, raw: RawRecord, name: str, reference_path: str | None = None
) -> LoggedCall | Reject:
    excerpt = raw.raw[:200]
    if raw.value is None:
        how = "skipped" if raw.skipped else "quarantined"
        return Reject.model_validate(
            {"line": raw.line, "reason": raw.reason, "kind": how, "excerpt": excerpt}
        )
    try:
        call = kind.parse(raw.value, raw.line)
        reference = _reference(raw.value, reference_path) if reference_path else None
        return replace(call, source=f"{name}:{raw.line}", reference=reference)
    except Unusable as verdict:
        how, reason, detail = (
            "skipped" if verdict.skipped else "quarantined",
            verdict.reason,
            verdict.detail,
        )
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        how, reason, detail = "quarantined", "shape_broken", str(error)[:200]
    values = {"line": raw.line, "reason": reason, "kind": how, "detail": detail}
    return Reject.model_validate({**values, "excerpt": excerpt})


def _preview(kind: Format, raw: RawRecord, name: str) -> RecordPreview:
    result = _understand(kind, raw, name)
    fields = _fields(raw.value)
    if isinstance(result, Reject):
        return RecordPreview(line=raw.line, raw=raw.raw, reject=result, fields=fields)
    folder = Folder()
    folder.add(result)
    conversation = folder.conversations()[0]
    return RecordPreview(line=raw.line, raw=raw.raw, conversation=conversation, fields=fields)


def inspect(paths: Sequence[Path], names: Sequence[str]) -> InspectReport:
    """Say what the first 50 records look like; raise EmptyUpload when there is none."""
    sample = list(islice(_records(paths, names), SAMPLE))
    if not any(raw.raw for _, raw in sample):
        raise EmptyUpload("The upload holds no record. Choose a file with at least one.")
    values = [raw.value for _, raw in sample if raw.value is not None]
    try:
        kind, reason = detect(values)
    except UnknownFormat as error:
        shown = [
            RecordPreview(line=r.line, raw=r.raw, fields=_fields(r.value))
            for _, r in sample[:PREVIEWS]
        ]
        return InspectReport(
            format=None, reason=str(error), records_seen=len(sample), previews=tuple(shown)
        )
    models: Counter[str] = Counter()
    for name, raw in sample:
        result = _understand(kind, raw, name)
        if isinstance(result, LoggedCall) and result.model:
            models[result.model] += 1
    candidates = dict.fromkeys(path for value in values for path in _fields(value))
    return InspectReport(
        format=kind.NAME,
        reason=reason,
        records_seen=len(sample),
        previews=tuple(_preview(kind, raw, name) for name, raw in sample[:PREVIEWS]),
        reference_candidates=tuple(candidates),
        models=dict(models),
    )


def _choose(name: str, paths: Sequence[Path], names: Sequence[str]) -> Format:
    if name == "auto":
        sample = [raw for _, raw in islice(_records(paths, names), SAMPLE)]
        if not any(raw.raw for raw in sample):
            raise EmptyUpload("The upload holds no record. Choose a file with at least one.")
        return detect([raw.value for raw in sample if raw.value is not None])[0]
    known = formats()
    if name not in known:
        raise UnknownFormat(f"No format {name}. Known formats: {', '.join(sorted(known))}.")
    return known[name]


class _Counts:
    """The funnel while it fills."""

    def __init__(self) -> None:
        self.records = self.calls = self.duplicates = self.references = 0
        self.rejected: dict[str, Counter[str]] = {"skipped": Counter(), "quarantined": Counter()}
        self.flagged: Counter[str] = Counter()
        self.models: Counter[str] = Counter()

    def call(self, call: LoggedCall) -> None:
        self.calls += 1
        self.flagged.update(call.flags)
        self.references += call.reference is not None
        if call.model:
            self.models[call.model] += 1


def _fill(
    records: Iterator[tuple[str, RawRecord]],
    understand: tuple[Format, str | None],
    rejects: IO[bytes],
    callbacks: Progress,
) -> tuple[_Counts, Folder]:
    counts, folder = _Counts(), Folder()
    for name, raw in records:
        counts.records += 1
        if counts.records % EVERY == 0:
            callbacks.progress(counts.records, 0, "records")
            if callbacks.should_stop():
                raise ImportStopped("The import was stopped. Start it again to import the file.")
        result = _understand(understand[0], raw, name, understand[1])
        if isinstance(result, Reject):
            counts.rejected[result.kind][result.reason] += 1
            rejects.write(orjson.dumps(result.model_dump(mode="json")) + b"\n")
        elif folder.add(result):
            counts.call(result)
        else:
            counts.duplicates += 1
    return counts, folder


def _split(items: list[Conversation], validation: float, test: float) -> list[Conversation]:
    return [i.model_copy(update={"split": side(i.group, validation, test)}) for i in items]


def import_files(
    paths: Sequence[Path],
    *,
    names: Sequence[str],
    format: str = "auto",  # noqa: A002 - the word people and the API use
    reference_path: str | None = None,
    validation_share: float,
    test_share: float,
    out_dir: Path,
    callbacks: Progress,
) -> ImportFunnel:
    """Import uploads into `out_dir`: conversations.parquet and rejects.jsonl.

    Shares are fractions of the conversation groups. Raises an IngestError.
    """
    kind = _choose(format, paths, names)
    out_dir.mkdir(parents=True, exist_ok=True)
    with (out_dir / "rejects.jsonl").open("wb") as rejects:
        counts, folder = _fill(_records(paths, names), (kind, reference_path), rejects, callbacks)
    if not counts.records:
        raise EmptyUpload("The upload holds no record. Choose a file with at least one.")
    items = _split(folder.conversations(), validation_share, test_share)
    dataset_file.write(out_dir / "conversations.parquet", items, COLUMNS)
    callbacks.progress(counts.records, counts.records, "records")
    return ImportFunnel(
        format=kind.NAME,
        records=counts.records,
        calls=counts.calls,
        duplicates=counts.duplicates,
        skipped=dict(counts.rejected["skipped"]),
        quarantined=dict(counts.rejected["quarantined"]),
        folded=folder.folded,
        conversations=len(items),
        targets=sum(m.is_target for item in items for m in item.messages),
        flagged=dict(counts.flagged),
        references=counts.references,
        models=dict(counts.models),
        splits=dict(Counter(item.split for item in items)),
    )
