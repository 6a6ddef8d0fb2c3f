"""Fine-tune lines, prompt and completion pairs, and how formats are found."""

from typing import Any

import pytest

from tests.workers.ingest.conftest import Load, chat
from workers.ingest.errors import UnknownFormat
from workers.ingest.formats import openai_finetune, prompt_completion
from workers.ingest.registry import detect, format_named, formats
from workers.ingest.values import Record, Unusable

TUNE = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
}


def record(value: dict[str, Any]) -> Record:
    return Record(1, value, b"", "up:1")


def test_weights_say_what_is_taught(load: Load) -> None:
    extra = {"messages": [*TUNE["messages"][:2], {"role": "assistant", "content": "other"}]}
    result = load([TUNE, extra])
    assert result.funnel.format == "openai_finetune"
    assert result.funnel.calls == 2
    by_length = sorted(result.conversations, key=lambda c: -len(c.messages))
    assert [(m.content, m.is_target) for m in by_length[0].messages if m.role == "assistant"] == [
        ("b", False),
        ("d", True),
    ]
    assert by_length[0].messages[2].flags == ("weight_0",)


def test_all_assistant_turns_of_a_line_are_targets_and_prefix_lines_fold(load: Load) -> None:
    turns = [{k: v for k, v in m.items() if k != "weight"} for m in TUNE["messages"]]
    result = load([{"messages": turns[:3]}, {"messages": turns}, {"messages": turns}])
    assert (result.funnel.calls, result.funnel.duplicates, result.funnel.folded) == (2, 1, 1)
    assert (result.funnel.conversations, result.funnel.targets) == (1, 2)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "a"}], "ends_without_answer"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "answer_empty"),
        ([{"role": "assistant", "content": "a"}], "no_user_text"),
        ([], "messages_empty"),
    ],
)
def test_fine_tune_lines_that_teach_nothing(messages: list[Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as caught:
        openai_finetune.FORMAT.parse(record({"messages": messages}))
    assert caught.value.kind == "skipped"


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "p", "completion": "c"},
        {"Question": "p", " ANSWER ": "c"},
        {"input": "p", "output": "c"},
    ],
)
def test_header_synonyms(value: dict[str, str]) -> None:
    assert detect([value], "up")[0].name == "prompt_completion"
    call = prompt_completion.FORMAT.parse(record(value))
    assert (call.messages[0].content, call.answer.content) == ("p", "c")


@pytest.mark.parametrize(
    ("prompt", "completion", "reason"),
    [
        (" ", "c", "prompt_empty"),
        ("p", "", "completion_empty"),
        ("p", "NULL", "completion_null_word"),
        ("None", "c", "prompt_null_word"),
        ("p", None, "completion_null"),
        ("p", 3, "completion_broken"),
        ("p", "(litellm_truncated 5 chars)", "truncated_by_logger"),
    ],
)
def test_pairs_that_are_quarantined(prompt: Any, completion: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as caught:
        prompt_completion.FORMAT.parse(record({"prompt": prompt, "completion": completion}))
    assert caught.value.kind == "quarantined"


def test_a_csv_as_excel_saves_it(load: Load) -> None:
    text = (
        "\ufeffdate,prompt,completion,truth\r\n"
        '10/09/2026,"two\r\nlines",fine,yes\r\n'
        "10/09/2026,hi,NULL,\r\n"
        "10/09/2026,hi,there,\r\n"
        "10/09/2026,hi,there,late truth\r\n"
        "short,row\r\n"
    )
    result = load(text.encode(), "pairs.csv", reference_path="truth")
    assert result.funnel.records == 5
    assert (result.funnel.calls, result.funnel.duplicates, result.funnel.references) == (2, 1, 2)
    assert result.funnel.quarantined == {"completion_null_word": 1, "csv_wrong_columns": 1}
    assert result.texts() == [["two\nlines", "fine"], ["hi", "there"]]
    assert [c.source for c in result.conversations] == ["pairs.csv:2", "pairs.csv:5"]
    assert [c.messages[-1].reference for c in result.conversations] == ["yes", "late truth"]
    assert [r["line"] for r in result.rejects] == [4, 7]


def test_each_format_knows_its_own() -> None:
    assert list(formats()) == ["openai_chat", "openai_finetune", "prompt_completion"]
    samples = {
        "openai_chat": chat("hi"),
        "openai_finetune": TUNE,
        "prompt_completion": {"prompt": "p", "completion": "c"},
    }
    for name, sample in samples.items():
        assert detect([sample, {"noise": 1}], "up")[0] is format_named(name)


def test_unknown_formats_say_what_was_seen() -> None:
    with pytest.raises(UnknownFormat, match=r"log\.json .* fields from, text.*openai_chat"):
        detect([{"from": "a", "text": "b"}], "log.json")
    with pytest.raises(UnknownFormat, match="no format csv"):
        format_named("csv")
