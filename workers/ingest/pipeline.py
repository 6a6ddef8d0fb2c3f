"""The two doors of the importer: look at an upload, and import it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import extract_tb

import orjson

from app.specs.conversation import (
    Conversation,
    ImportFunnel,
    InspectReport,
    RecordPreview,
    Reject,
)
from app.specs.split import side
from workers.ingest.callbacks import Progress, Quiet
from workers.ingest.dataset_file import write_conversations
from workers.ingest.errors import EmptyUpload, ImportStopped, MixedFormats, UnknownFormat
from workers.ingest.facts import fields_seen, reference_at, scalars
from workers.ingest.fold import Folder
from workers.ingest.funnel import FunnelCounts
from workers.ingest.health import marked
from workers.ingest.jsontext import excerpt
from workers.ingest.reading import Outcome, read_records, reject
from workers.ingest.registry import MIN_SCORE, detect, format_named, formats
from workers.ingest.unpacking import Limits
from workers.ingest.values import Format, LoggedCall, Record, Unusable, quarantined

SAMPLE = 50
PREVIEWS = 5
_RAW_CHARS = 4000  # of a previewed record
_TICK = 0.1  # seconds between two words to the callbacks
CONVERSATIONS_FILE = "conversations.parquet"
REJECTS_FILE = "rejects.jsonl"


def understand(
    form: Format, outcome: Outcome, reference_path: str | None = None
) -> LoggedCall | Reject:
    """Read one record in a format; whatever is wrong with it, the answer is a Reject."""
    if isinstance(outcome, Reject):
        return outcome
    try:
        call = form.parse(outcome)
        if reference_path:
            call = replace(call, reference=reference_at(outcome.value, reference_path))
        call = marked(call)
    except Unusable as verdict:
        return reject(outcome.line, verdict, outcome.raw)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError) as error:
        # A shape nobody foresaw costs its own record, never the import.
        frame = extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        surprise = quarantined("unexpected_shape", f"no reader knows it; please report it ({at})")
        return reject(outcome.line, surprise, outcome.raw)
    return call


def _sample(path: Path, name: str) -> list[Outcome]:
    return list(islice(read_records(path, name), SAMPLE))


def _detect(sample: Sequence[Outcome], name: str) -> tuple[Format, str]:
    return detect([item.value for item in sample if isinstance(item, Record)], name)


def _choose(wanted: str, paths: Sequence[Path], names: Sequence[str]) -> Format:
    """Return the format of all files: the one asked for, or the one their first records show."""
    if wanted != "auto":
        return format_named(wanted)
    chosen: tuple[Format, str] | None = None
    for path, name in zip(paths, names, strict=True):
        sample = _sample(path, name)
        if not sample:
            continue
        values = [item.value for item in sample if isinstance(item, Record)]
        if chosen is None:
            chosen = _detect(sample, name)[0], name
        elif chosen[0].sniff(values).score < MIN_SCORE:
            found = _detect(sample, name)[0]
            raise MixedFormats(
                f"{name} is {found.name}, {chosen[1]} is {chosen[0].name}. Import them apart."
            )
    if chosen is None:
        raise _empty(names)
    return chosen[0]


def _empty(names: Sequence[str]) -> EmptyUpload:
    return EmptyUpload(f"{', '.join(names) or 'The upload'} holds no record. Upload a log file.")


def _preview(form: Format | None, outcome: Outcome) -> RecordPreview:
    if isinstance(outcome, Reject):
        return RecordPreview(line=outcome.line, raw=outcome.excerpt, reject=outcome)
    shown = RecordPreview(
        line=outcome.line, raw=excerpt(outcome.raw, _RAW_CHARS), fields=scalars(outcome.value)
    )
    if form is None:
        return shown
    result = understand(form, outcome)
    if isinstance(result, Reject):
        return shown.model_copy(update={"reject": result})
    with TemporaryDirectory() as folder, closing(Folder(Path(folder))) as folder_of_one:
        folder_of_one.add(result)
        conversation = next(folder_of_one.conversations())
    return shown.model_copy(update={"conversation": conversation})


def _previewed(sample: Sequence[Outcome]) -> list[Outcome]:
    """Choose the first records that parsed, then rejects if there are too few of them."""
    records = [item for item in sample if isinstance(item, Record)][:PREVIEWS]
    rejects = [item for item in sample if isinstance(item, Reject)]
    return sorted([*records, *rejects[: PREVIEWS - len(records)]], key=lambda item: item.line)


def inspect(paths: Sequence[Path], names: Sequence[str] | None = None) -> InspectReport:
    """Say what the first 50 records of the first file look like; nothing is stored.

    `format` is None, with the reason, when no known format fits. Raises EmptyUpload,
    DamagedArchive.
    """
    known = list(names) if names is not None else [path.name for path in paths]
    sample: list[Outcome] = []
    name = ""
    for path, name in zip(paths, known, strict=True):
        sample = _sample(path, name)
        if sample:
            break
    if not sample:
        raise _empty(known)
    form: Format | None = None
    try:
        form, reason = _detect(sample, name)
    except UnknownFormat as error:
        reason = str(error)
    values = [item.value for item in sample if isinstance(item, Record)]
    results = [item if form is None else understand(form, item) for item in sample]
    calls = [item for item in results if isinstance(item, LoggedCall)]
    rejected = Counter(item.reason for item in results if isinstance(item, Reject))
    return InspectReport(
        format=form.name if form is not None else None,
        reason=reason,
        records_seen=len(sample),
        previews=tuple(_preview(form, item) for item in _previewed(sample)),
        reference_candidates=fields_seen(values),
        models=dict(Counter(call.model for call in calls if call.model)),
        calls=len(calls),
        rejected=dict(rejected),
        known_formats=tuple(formats()),
    )


class _Ticker:
    """Passes progress on about ten times a second, and a request to stop as ImportStopped."""

    def __init__(self, callbacks: Progress, total: int) -> None:
        self._callbacks, self._total = callbacks, total
        self._before = 0
        self._next = 0.0

    def next_file(self, size: int) -> None:
        self._before += size

    def __call__(self, position: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _TICK
        self._callbacks.progress(self._before + position, self._total, "bytes")
        self.check()

    def check(self) -> None:
        if self._callbacks.should_stop():
            raise ImportStopped("The import was stopped. Nothing was kept; start it again.")


def _outcomes(
    paths: Sequence[Path], names: Sequence[str], ticker: _Ticker, limits: Limits | None
) -> Iterator[tuple[str, Outcome]]:
    """Yield each record with the name of its file."""
    for path, name in zip(paths, names, strict=True):
        for outcome in read_records(path, name, limits=limits, on_position=ticker):
            yield name, outcome
        ticker.next_file(path.stat().st_size)


def _fill(
    outcomes: Iterator[tuple[str, Outcome]],
    understood: Callable[[Outcome], LoggedCall | Reject],
    folder: Folder,
    rejects: Path,
) -> FunnelCounts:
    counts = FunnelCounts()
    with rejects.open("wb") as stream:
        for name, outcome in outcomes:
            result = understood(outcome)
            if isinstance(result, Reject):
                counts.reject(result)
                told = result.model_copy(update={"source": name}).model_dump(mode="json")
                stream.write(orjson.dumps(told) + b"\n")
            else:
                counts.call(result, new=folder.add(result))
    return counts


def import_files(
    paths: Sequence[Path],
    *,
    names: Sequence[str] | None = None,
    format: str = "auto",  # noqa: A002 - the word of the API and the command line
    reference_path: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    out_dir: Path,
    callbacks: Progress | None = None,
) -> ImportFunnel:
    """Import files into `out_dir`: conversations.parquet and rejects.jsonl, both or neither.

    Shares are fractions of the conversation groups. The same files give the same bytes. Memory
    holds one record and the fold's hashes (see Folder); `out_dir` needs room for the distinct
    texts while it runs. Raises an IngestError.
    """
    known = list(names) if names is not None else [path.name for path in paths]
    talk = callbacks or Quiet()
    form = _choose(format, paths, known)
    out_dir.mkdir(parents=True, exist_ok=True)
    total = sum(path.stat().st_size for path in paths)
    ticker = _Ticker(talk, total)
    with TemporaryDirectory(dir=out_dir) as work, closing(Folder(Path(work))) as folder:
        rejects, dataset = Path(work) / REJECTS_FILE, Path(work) / CONVERSATIONS_FILE
        counts = _fill(
            _outcomes(paths, known, ticker, None),
            lambda outcome: understand(form, outcome, reference_path),
            folder,
            rejects,
        )
        if not counts.records:
            raise _empty(known)
        talk.log(f"read {counts.records} records as {form.name}; folding {counts.calls} calls")

        def placed() -> Iterator[Conversation]:
            for found in folder.conversations():
                split = side(found.group, validation_share=validation_share, test_share=test_share)
                conversation = found.model_copy(update={"split": split})
                counts.conversation(conversation)
                ticker.check()
                yield conversation

        write_conversations(dataset, placed())
        funnel = counts.funnel(form.name, folder.folded)
        rejects.replace(out_dir / REJECTS_FILE)
        dataset.replace(out_dir / CONVERSATIONS_FILE)
    talk.progress(total, total, "bytes")
    return funnel
