"""What a rejected record is told to be: in the words of JSON, never of Python."""

import json
from typing import Any

import pytest

from app.specs.conversation import Reject
from workers.ingest.formats import openai_chat, openai_finetune, prompt_completion
from workers.ingest.jsontext import kind_of, parse_object
from workers.ingest.pipeline import understand
from workers.ingest.streams import join_chunks
from workers.ingest.values import Record, Unusable

GOOD = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({}, "an object"),
        ([], "an array"),
        (None, "null"),
        ("x", "a text"),
        (7, "a number"),
        (0.5, "a number"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_kinds_have_the_names_of_json(value: Any, name: str) -> None:
    assert kind_of(value) == name


def told(value: Any, form: Any = openai_chat.FORMAT) -> str:
    result = understand(form, Record(1, value, b"", "log.jsonl:1"))
    assert isinstance(result, Reject)
    return result.detail


def asked(messages: Any) -> dict[str, Any]:
    return {"request": {"messages": messages}, "response": {"choices": []}}


def answered(response: Any) -> dict[str, Any]:
    return {"request": {"messages": [GOOD]}, "response": response}


def called(calls: Any) -> dict[str, Any]:
    return answered({"role": "assistant", "content": "", "tool_calls": calls})


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (asked({"a": 1}), "messages is an object"),
        (asked([None]), "a message that is null"),
        (asked([["a"]]), "a message that is an array"),
        (asked([{"role": "user", "content": 7}]), "a content that is a number"),
        (asked([{"role": "user", "content": [True]}]), "a content part that is true"),
        (asked([{"role": None}]), "null"),
        (asked([{"content": "x"}]), "no role"),
        (asked([{"role": ["a"]}]), '["a"]'),
        (answered(7), "a response that is a number"),
        (answered("done"), "a response that is a text"),
        (answered({"error": {"code": None, "ok": False}}), '{"code":null,"ok":false}'),
        (answered({"error": "too long"}), "too long"),
        (called({"a": 1}), "tool_calls is an object"),
        ({**answered({}), "status_code": 500}, "500"),
    ],
)
def test_a_broken_call_is_told_in_the_words_of_json(value: Any, detail: str) -> None:
    assert told(value) == detail


def test_other_formats_say_it_too() -> None:
    wrong = {"prompt": ["a"], "completion": "b"}
    assert told(wrong, prompt_completion.FORMAT) == "a prompt that is an array"
    assert told({"messages": 7}, openai_finetune.FORMAT) == "messages is a number"
    for text, kind in (("[1]", "an array"), ("null", "null"), ('"x"', "a text")):
        with pytest.raises(Unusable) as caught:
            parse_object(text.encode())
        assert caught.value.detail == f"a record that is {kind}"


def test_what_no_reader_foresaw_names_no_error_of_python() -> None:
    class Broken:
        def parse(self, record: Record) -> None:
            return record.value["missing"]

    detail = told({}, Broken())
    assert detail.startswith("no reader knows it; please report it (test_json_words.py:")
    assert "Error" not in detail


def test_arguments_streamed_as_an_object_stay_json() -> None:
    part = {"index": 0, "function": {"name": "f", "arguments": {"a": None, "b": True}}}
    made = join_chunks([{"choices": [{"delta": {"tool_calls": [part]}}]}])
    text = made["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(text) == {"a": None, "b": True}
