"""Folding: histories become conversations, whatever the order of lines."""

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.made_logs import write_chat_log
from tests.workers.ingest.conftest import Imported, Load, chat
from workers.ingest.pipeline import import_files

TURNS = ["q1", "a1", "q2", "a2", "q3", "a3", "q4", "a4", "q5", "a5", "q6", "a6"]


def whole(turns: list[str], *, system: str = "") -> list[dict[str, Any]]:
    """Every call of a dialogue, each with its whole history."""
    head = [f"s:{system}"] if system else []
    return [chat(*head, *turns[:at], answer=turns[at]) for at in range(1, len(turns), 2)]


def test_a_history_repeated_by_each_line_is_one_conversation(load: Load) -> None:
    result = load(whole(TURNS, system="be brief"))
    assert result.texts() == [["be brief", *TURNS]]
    assert (result.funnel.calls, result.funnel.folded, result.funnel.targets) == (6, 5, 6)
    assert [m.is_target for m in result.conversations[0].messages[1:]] == [False, True] * 6
    assert result.conversations[0].source == "log.jsonl:6"


def test_history_that_no_line_produced_is_context(load: Load) -> None:
    result = load([chat("shot", "example", "real question", answer="real answer")])
    assert [m.is_target for m in result.conversations[0].messages] == [False, False, False, True]


def test_retries_are_duplicates_and_fill_a_missing_reference(load: Load) -> None:
    result = load(
        [
            chat("hi", answer="yo", id=1),
            chat("hi", answer=" yo ", id=2, truth={"b": 1, "a": "é"}),
            chat("hi", answer="yo", id=3),
        ],
        reference_path="truth",
    )
    assert (result.funnel.calls, result.funnel.duplicates, result.funnel.references) == (1, 2, 1)
    assert result.conversations[0].messages[-1].reference == '{"a":"é","b":1}'


def test_references_survive_folding(load: Load) -> None:
    records = whole(TURNS[:6])
    for at, record in enumerate(records):
        record["metadata"] = {"reference": f"truth {at}"}
    result = load(records, reference_path="metadata.reference")
    references = [m.reference for m in result.conversations[0].messages if m.is_target]
    assert references == ["truth 0", "truth 1", "truth 2"]


def test_branches_share_a_group_and_each_turn_is_taught_once(load: Load) -> None:
    records = [*whole(TURNS[:6]), chat(*TURNS[:3], answer="another a2")]
    result = load(records)
    assert sorted(map(len, result.texts())) == [4, 6]
    assert len({c.group for c in result.conversations}) == 1
    assert len({c.split for c in result.conversations}) == 1
    assert result.funnel.targets == result.funnel.calls == 4
    short = min(result.conversations, key=lambda c: len(c.messages))
    assert [(m.content, m.is_target, m.flags) for m in short.messages if m.role == "assistant"] == [
        ("a1", False, ("other_branch",)),
        ("another a2", True, ()),
    ]


def test_choices_of_one_request_are_branches_of_one_call(load: Load) -> None:
    record = chat("hi", answer="one")
    record["response"]["choices"].append({"index": 1, "message": {"content": "two"}})
    result = load([record, record])
    assert (result.funnel.calls, result.funnel.duplicates) == (1, 1)
    assert sorted(t[-1] for t in result.texts()) == ["one", "two"]
    assert result.funnel.targets == 2


def test_a_cut_answer_beside_a_whole_one_is_no_conversation(load: Load) -> None:
    cut = chat("hi", answer="hel")
    cut["response"]["choices"][0]["finish_reason"] = "length"
    result = load([cut, chat("hi", answer="hello")])
    assert result.texts() == [["hi", "hello"]]
    assert result.funnel.flagged == {"cut_answer": 1}
    alone = load([cut, cut])
    assert alone.texts() == [["hi", "hel"]]
    assert alone.funnel.targets == 0
    assert alone.conversations[0].messages[-1].flags == ("cut_answer",)


def test_a_clock_in_the_system_prompt_does_not_part_a_conversation(load: Load) -> None:
    records = [
        chat(
            f"s:You help. It is 2026-09-01 06:{at:02d}.",
            *TURNS[: 2 * at + 1],
            answer=TURNS[2 * at + 1],
        )
        for at in range(4)
    ]
    result = load(records)
    assert result.texts() == [["You help. It is 2026-09-01 06:03.", *TURNS[:8]]]
    assert (result.funnel.targets, result.funnel.folded) == (4, 3)


def test_other_system_prompts_stay_apart(load: Load) -> None:
    result = load(
        [
            chat("s:You help Ann.", "hi", answer="yo"),
            chat("s:You help Bob.", "hi", "yo", "so", answer="what"),
        ]
    )
    assert len(result.conversations) == 2
    assert len({c.group for c in result.conversations}) == 2


def windows(turns: list[str], size: int = 6) -> list[dict[str, Any]]:
    records = whole(turns, system="be brief")
    for record in records:
        messages = record["request"]["messages"]
        record["request"]["messages"] = messages[:1] + messages[1:][-size:]
    return records


def test_history_windows_are_joined_by_their_overlap(load: Load) -> None:
    result = load(windows(TURNS))
    assert result.texts() == [["be brief", *TURNS]]
    assert (result.funnel.targets, result.funnel.folded) == (6, 5)


def test_windows_with_a_gap_and_windows_of_other_sessions(load: Load) -> None:
    records = windows(TURNS)
    del records[3]
    result = load(records)
    assert result.texts() == [["be brief", *TURNS]]
    assert result.funnel.targets == 5
    for at, record in enumerate(records):
        record["session_id"] = f"s{at}"
    assert len(load(records).conversations) > 1


def test_windows_that_run_in_a_circle_end(load: Load) -> None:
    ring = ["a", "b", "c", "d", "e", "f"] * 4
    records = [chat(*ring[at : at + 7], answer=ring[at + 7]) for at in range(0, 12, 2)]
    result = load(records)
    assert result.funnel.calls == 3
    assert result.conversations


def test_a_window_cut_before_a_tool_result_drops_the_orphan(load: Load) -> None:
    record = chat("thanks", answer="welcome")
    record["request"]["messages"].insert(0, {"role": "tool", "content": "r", "tool_call_id": "x"})
    assert load([record]).texts() == [["thanks", "welcome"]]


def test_call_ids_are_numbered_through(load: Load) -> None:
    def made(prefix: str, upto: int) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
        for at in range(3):
            call = {"id": f"{prefix}{at}", "function": {"name": "f", "arguments": f'{{"n":{at}}}'}}
            messages.append({"role": "assistant", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"{prefix}{at}", "content": str(at)})
        record = chat("x", answer=messages[upto])
        record["request"]["messages"] = messages[:upto]
        return record

    result = load([made("x", 1), made("y", 3), made("z", 5)])
    assert len(result.conversations) == 1
    messages = result.conversations[0].messages
    assert [c.id for m in messages for c in m.tool_calls] == ["call_0", "call_1", "call_2"]
    assert [m.tool_call_id for m in messages if m.role == "tool"] == ["call_0", "call_1"]


def run(lines: list[bytes], folder: str) -> Imported:
    path, out = Path(folder) / "log.jsonl", Path(folder) / "out"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return Imported(
        out, import_files([path], out_dir=out, reference_path="request.metadata.reference")
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_lines_changes_nothing(seed: int, random: Random) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "made.jsonl"
        truth = write_chat_log(path, seed=seed, dialogues=12, dirt=0.4, reference=True)
        lines = path.read_bytes().split(b"\n")[:-1]
        before = run(lines, folder)
        random.shuffle(lines)
        after = run(lines, folder)
    assert before.said() == after.said()
    assert before.funnel == after.funnel
    assert after.funnel.conversations == truth.conversations


WORDS = st.sampled_from(["a", "b", "c", " a", "s:x 1", "s:x 2"])
CALLS = st.lists(
    st.tuples(st.lists(WORDS, min_size=1, max_size=7), st.sampled_from(["a", "b", "c", "b "])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(CALLS, st.randoms(use_true_random=False))
def test_any_calls_fold_alike_in_any_order_and_lose_no_target(
    calls: list[tuple[list[str], str]], random: Random
) -> None:
    """Few words on purpose: everything overlaps, branches and runs in circles."""
    lines = [json.dumps(chat(*texts, answer=answer)).encode() for texts, answer in calls]
    with TemporaryDirectory() as folder:
        before = run(lines, folder)
        random.shuffle(lines)
        after = run(lines, folder)
    assert before.said() == after.said()
    assert before.funnel == after.funnel
    assert before.funnel.folded + before.funnel.conversations == before.funnel.calls
    assert before.funnel.targets <= before.funnel.calls
