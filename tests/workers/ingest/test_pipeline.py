"""The whole import: funnel against made truth, determinism, hostile lines, inspection."""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.specs.conversation import Reject
from app.specs.dataset_file import from_row, to_row
from bench.made_logs import write_chat_log
from tests.workers.ingest.conftest import Imported, Load, chat
from workers.ingest.callbacks import Quiet
from workers.ingest.errors import EmptyUpload, ImportStopped, MixedFormats, UnknownFormat
from workers.ingest.facts import fields_seen
from workers.ingest.pipeline import import_files, inspect


@pytest.mark.parametrize("seed", [1, 2])
def test_the_funnel_of_a_dirty_log_is_exact(tmp_path: Path, seed: int) -> None:
    path, out = tmp_path / "made.jsonl", tmp_path / "out"
    truth = write_chat_log(path, seed=seed, dialogues=120, dirt=0.3, bom=True, reference=True)
    funnel = import_files([path], out_dir=out, reference_path="request.metadata.reference")
    assert funnel.records == truth.records
    assert (funnel.calls, funnel.duplicates) == (truth.calls, truth.duplicates)
    assert funnel.skipped == dict(truth.skipped)
    assert funnel.quarantined == dict(truth.quarantined)
    assert funnel.flagged == dict(truth.flagged)
    assert (funnel.targets, funnel.references) == (truth.targets, truth.references)
    assert abs(funnel.conversations - truth.conversations) <= 0.03 * truth.conversations
    assert sum(funnel.splits.values()) == funnel.conversations
    rows = pq.read_table(out / "conversations.parquet").to_pylist()
    told = Counter(c.split for c in map(from_row, rows) if c.has_reference)
    assert funnel.referenced == {split: told[split] for split in funnel.splits}
    assert min(told.values()) > 0
    assert len(truth.skipped) > 5
    assert len(truth.quarantined) == 4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    write_chat_log(path, seed=3, dialogues=40, dirt=0.3)
    hashes = set()
    for name in ("one", "two"):
        import_files([path], out_dir=tmp_path / name)
        made = [(tmp_path / name / file) for file in ("conversations.parquet", "rejects.jsonl")]
        hashes.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in made))
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [m.name for m in made]
    assert len(hashes) == 1


def test_rows_give_their_conversations_back(load: Load) -> None:
    result = load([chat("s:x", "café", answer="ok", metadata={"route": "r"})])
    row = result.rows[0]
    conversation = from_row(row)
    assert to_row(conversation) == row
    assert row["id"] == conversation.id
    assert (row["n_messages"], row["n_targets"], row["first_user"]) == (3, 1, "café")
    assert conversation.metadata == {"route": "r"}
    assert conversation.messages[-1].model == "big-70b"


def test_several_files_are_one_import(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text(json.dumps(chat("a", answer="b")) + "\nbroken\n")
    two.write_bytes(gzip.compress((json.dumps(chat("a", "b", "c", answer="d")) + "\n").encode()))
    out = tmp_path / "out"
    funnel = import_files([one, two], names=["mon.jsonl", "tue.jsonl.gz"], out_dir=out)
    assert (funnel.calls, funnel.folded, funnel.records) == (2, 1, 3)
    assert Imported(out, funnel).conversations[0].source == "tue.jsonl.gz:1"
    two.write_text("prompt,completion\na,b\n")
    with pytest.raises(MixedFormats, match=r"2 is prompt_completion, 1 is openai_chat"):
        import_files([one, two], out_dir=out)


def test_nothing_to_import(tmp_path: Path) -> None:
    path = tmp_path / "up"
    path.write_bytes(b"")
    for run in (lambda: inspect([path]), lambda: import_files([path], out_dir=tmp_path / "o")):
        with pytest.raises(EmptyUpload, match="up holds no record"):
            run()
    path.write_bytes(b"just words\nand more\n")
    with pytest.raises(UnknownFormat, match="no JSON or CSV"):
        import_files([path], out_dir=tmp_path / "o")
    with pytest.raises(UnknownFormat):
        import_files([path], format="nope", out_dir=tmp_path / "o")


class Stop(Quiet):
    """Asks to stop at once and remembers progress."""

    def __init__(self, *, stop: bool) -> None:
        self.stop, self.seen = stop, list[tuple[int, int, str]]()

    def progress(self, done: int, total: int, unit: str) -> None:
        self.seen.append((done, total, unit))

    def should_stop(self) -> bool:
        return self.stop


def test_stopping_leaves_nothing_and_progress_ends_at_the_total(tmp_path: Path) -> None:
    path, out = tmp_path / "made.jsonl", tmp_path / "out"
    write_chat_log(path, dialogues=3)
    with pytest.raises(ImportStopped):
        import_files([path], out_dir=out, callbacks=Stop(stop=True))
    assert list(out.iterdir()) == []
    heard = Stop(stop=False)
    import_files([path], out_dir=out, callbacks=heard)
    size = path.stat().st_size
    assert heard.seen[-1] == (size, size, "bytes")
    assert [done for done, _, _ in heard.seen] == sorted(done for done, _, _ in heard.seen)


def test_inspection_shows_records_before_anything_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "log"
    records = [chat("a", answer="b", metadata={"reference": "r"}, status=200), "broken {", None]
    path.write_text("\n".join(json.dumps(r) if isinstance(r, dict) else str(r) for r in records))
    report = inspect([path], ["log.jsonl"])
    assert (report.format, report.records_seen, report.models) == ("openai_chat", 3, {"big-70b": 1})
    assert "1 of the first 1 records" in report.reason
    assert [p.line for p in report.previews] == [1, 2, 3]
    shown = report.previews[0].conversation
    assert shown is not None
    assert [m.content for m in shown.messages] == ["a", "b"]
    assert report.previews[0].fields["metadata.reference"] == "r"
    assert report.reference_candidates[0].likely
    assert "metadata.reference" in [field.path for field in report.reference_candidates]
    assert report.calls + sum(report.rejected.values()) == report.records_seen
    assert [p.reject.reason for p in report.previews[1:] if p.reject] == ["not_json", "not_json"]
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_reference_may_be_a_whole_object_and_likely_names_come_first() -> None:
    records = [{"id": 7, "truth": 1, "meta": {"expected": {"queue": "a", "n": 2}}}, {"id": 8}]
    seen = fields_seen(records)
    assert (seen[0].path, seen[0].filled) == ("meta.expected", 1)
    assert json.loads(seen[0].sample) == {"queue": "a", "n": 2}
    assert {field.path: field.filled for field in seen}["id"] == 2
    assert [field.likely for field in seen] == [True, *[False] * (len(seen) - 1)]


def test_inspection_of_an_unknown_format_says_why(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"from": "x"}\n')
    report = inspect([path])
    assert report.format is None
    assert "fields from" in report.reason
    assert report.previews[0].fields == {"from": "x"}


GOOD = [json.dumps(chat("hello", answer="there")).encode(), b'{"prompt": "p", "completion": "c"}']
GOOD += [json.dumps({"messages": chat("q", "a")["request"]["messages"]}).encode()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good line with bytes cut out, put in, or another value somewhere in its structure."""
    line = draw(st.sampled_from(GOOD))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(line)))
        upto = draw(st.integers(at, len(line)))
        return (line[:at] + draw(st.binary(max_size=6)) + line[upto:]).replace(b"\n", b"")
    value: Any = json.loads(line)
    junk = draw(
        st.none()
        | st.integers()
        | st.text()
        | st.just([])
        | st.just([None])
        | st.just({})
        | st.just([[]])
        | st.just({"a": {}})
        | st.booleans()
        | st.floats(allow_nan=False)
    )
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            place[key] = junk
            return json.dumps(value).encode()
        place = place[key]


ODD_FINISH = GOOD[0].replace(b'"finish_reason": "stop"', b'"finish_reason": []')


@settings(max_examples=25, deadline=None)
@example([ODD_FINISH])
@given(
    st.lists(mutated() | st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=8)
)
def test_the_funnel_adds_up_on_anything(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / "log", Path(folder) / "out"
        path.write_bytes(b"\n".join([GOOD[0], *lines]) + b"\n")
        for name in ("openai_chat", "openai_finetune", "prompt_completion"):
            funnel = import_files([path], format=name, out_dir=out)
            imported = Imported(out, funnel)
            parts = funnel.calls + funnel.duplicates
            parts += sum(funnel.skipped.values()) + sum(funnel.quarantined.values())
            assert parts == funnel.records
            assert "unexpected_shape" not in funnel.quarantined
            rejects = [Reject.model_validate(r) for r in imported.rejects]
            assert all(len(r.excerpt) <= 200 for r in rejects)
            assert len(rejects) == funnel.records - funnel.calls - funnel.duplicates
