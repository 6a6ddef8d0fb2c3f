"""OpenAI chat logs: wrappers, shapes of answers, tools, and what is no call."""

import json
from typing import Any

import pytest

from tests.workers.ingest.conftest import chat
from workers.ingest.formats.openai_chat import FORMAT
from workers.ingest.values import LoggedCall, Record, Unusable

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"b":1,"a":2}'}}


def parse(record: dict[str, Any]) -> LoggedCall:
    return FORMAT.parse(Record(7, record, b"{}", "log:7"))


def why(record: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(Unusable) as caught:
        parse(record)
    return caught.value.kind, caught.value.reason


def answered(message: Any, finish: str = "stop", **more: Any) -> dict[str, Any]:
    record = chat("hello there", answer=message)
    record["response"]["choices"][0]["finish_reason"] = finish
    return {**record, **more}


BODY = chat("hi", answer="yes")["request"]
REPLY = chat("hi", answer="yes")["response"]


@pytest.mark.parametrize(
    "record",
    [
        {"request": BODY, "response": REPLY},
        {"input": BODY, "output": REPLY},
        {"input": BODY["messages"], "output": REPLY["choices"][0]["message"]},
        {"request_body": BODY, "response_body": REPLY},
        {"request": json.dumps(BODY), "response": json.dumps(json.dumps(REPLY))},
        {**BODY, "response": REPLY},
        {**BODY, "choices": REPLY["choices"]},
        {"timestamp": 1, "client_id": "c", "workload_id": "w", "request": BODY, "response": REPLY},
        {"request": {"messages": json.dumps(BODY["messages"])}, "response": REPLY},
    ],
)
def test_wrappers_and_json_inside_text(record: dict[str, Any]) -> None:
    assert FORMAT.sniff([record]).score == 1
    call = parse(record)
    assert [(m.role, m.content) for m in call.messages] == [("user", "hi")]
    assert (call.answer.content, call.flags, call.line) == ("yes", (), 7)


def test_contents_of_all_shapes() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}, "c"]
    record = chat("x", answer={"role": "assistant", "content": parts, "reasoning_content": "hm"})
    record["request"]["messages"] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts},
    ]
    call = parse(record)
    assert [(m.role, m.content) for m in call.messages] == [("system", "be brief"), ("user", "abc")]
    assert (call.answer.content, call.answer.reasoning) == ("abc", "hm")


def test_refusals_are_answers() -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert parse(answered(refusal)).answer.content == "I cannot."
    assert parse(answered(refusal)).flags == ()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"content": None, "function_call": {"name": "find", "arguments": {"a": 2, "b": 1}}},
        {
            "content": "",
            "tool_calls": [{"function": {"name": "find", "arguments": '"{\\"a\\":2,\\"b\\":1}"'}}],
        },
    ],
)
def test_tool_calls_of_all_shapes(message: dict[str, Any]) -> None:
    call = parse(answered(message, "tool_calls"))
    assert [(c.name, c.arguments) for c in call.answer.tool_calls] == [("find", '{"a":2,"b":1}')]
    assert call.flags == ()


def test_broken_arguments_are_off_as_a_target() -> None:
    broken = {"tool_calls": [{"function": {"name": "find", "arguments": '{"a": '}}]}
    assert parse(answered(broken)).flags == ("broken_arguments",)


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def piece(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


def test_streams_are_put_together() -> None:
    text = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "He"}),
        chunk({"content": "y"}),
    ]
    text += [chunk({}, "stop"), {"choices": [], "usage": {}}]
    record = {"request": BODY, "response": text}
    assert parse(record).answer.content == "Hey"
    assert parse(record).flags == ()
    sse = "".join(f"data: {json.dumps(item)}\n\n" for item in text) + "data: [DONE]\n"
    assert parse({"request": BODY, "response": sse}).answer.content == "Hey"
    calls = [chunk(piece(name="find", arguments="")), chunk(piece(arguments='{"a"'))]
    calls += [chunk(piece(arguments=":1}")), chunk({}, "tool_calls")]
    made = parse({"request": BODY, "response": calls}).answer.tool_calls
    assert [(c.name, c.arguments) for c in made] == [("find", '{"a":1}')]
    assert parse({"request": BODY, "response": text[:2]}).flags == ("cut_answer",)


def test_flags_take_a_call_off_as_a_target() -> None:
    assert parse(answered("half an ans", "length")).flags == ("cut_answer",)
    assert parse(answered("half", "content_filter")).flags == ("content_filter",)
    record = chat("look", answer="a cat")
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    record["request"]["messages"][0]["content"] = [{"type": "text", "text": "look"}, image]
    call = parse(record)
    assert (call.flags, call.messages[0].content) == (("image",), "look")


def test_further_choices_are_branches() -> None:
    record = chat("hi", answer="one")
    record["response"]["choices"].append({"index": 1, "message": {"content": "two"}})
    call = parse(record)
    assert [call.answer.content, *[m.content for m in call.other_answers]] == ["one", "two"]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"status": 429}, ("skipped", "error_status")),
        ({"status": "failure"}, ("skipped", "error_status")),
        ({"response": {"error": {"message": "no"}}}, ("skipped", "error_response")),
        ({"response": None}, ("skipped", "response_null")),
        ({"response": {"choices": []}}, ("skipped", "choices_empty")),
        ({"response": {"id": "x"}}, ("skipped", "choices_missing")),
        ({"response": "upstream timed out"}, ("quarantined", "response_broken")),
        ({"response": {"choices": [{"message": {"content": " "}}]}}, ("skipped", "answer_empty")),
        ({"response": {"choices": [None]}}, ("skipped", "answer_empty")),
        ({"request": {"messages": []}}, ("skipped", "messages_empty")),
        ({"request": {}}, ("skipped", "messages_empty")),
        ({"request": 3}, ("quarantined", "no_request")),
        ({"request": {"messages": "hello"}}, ("quarantined", "messages_broken")),
        ({"request": {"messages": [3]}}, ("quarantined", "message_broken")),
        ({"request": {"messages": [{"role": "alien"}]}}, ("quarantined", "unknown_role")),
        (
            {"request": {"messages": [{"role": "user", "content": 3}]}},
            ("quarantined", "content_broken"),
        ),
        (
            {"request": {"messages": [{"role": "system", "content": "s"}]}},
            ("skipped", "no_user_text"),
        ),
    ],
)
def test_what_is_no_call(change: dict[str, Any], verdict: tuple[str, str]) -> None:
    assert why({**chat("hi"), **change}) == verdict


def test_texts_cut_by_the_logger_are_quarantined() -> None:
    verdict = ("quarantined", "truncated_by_logger")
    assert why(chat("begin (litellm_truncated 99 chars) end")) == verdict
    assert why(answered("<truncated due to size exceeding limit>")) == verdict
    call = {"function": {"name": "f", "arguments": '{"a":"(litellm_truncated 1 chars)"}'}}
    assert why(answered({"tool_calls": [call]})) == verdict


def with_tools(*messages: dict[str, Any]) -> dict[str, Any]:
    record = chat("x", answer="done")
    record["request"]["messages"] = [{"role": "user", "content": "go"}, *messages]
    return record


TWO = {
    "role": "assistant",
    "tool_calls": [CALL, {"id": "c2", "function": {"name": "buy", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("results", "positions"),
    [
        ([{"tool_call_id": "c2"}, {"tool_call_id": "c1"}], ["1", "0"]),
        ([{"name": "buy"}, {"name": "find"}], ["1", "0"]),
        ([{}, {}], ["0", "1"]),
        ([{"tool_call_id": "lost"}, {"tool_call_id": "gone"}], ["0", "1"]),
    ],
)
def test_tool_results_find_their_calls(results: list[dict[str, Any]], positions: list[str]) -> None:
    rows = [{"role": "tool", "content": "r", **result} for result in results]
    call = parse(with_tools(TWO, *rows))
    assert [m.tool_call_id for m in call.messages if m.role == "tool"] == positions


def test_a_result_of_no_call_is_quarantined_but_a_window_may_begin_with_one() -> None:
    orphan = {"role": "tool", "content": "r", "tool_call_id": "c1"}
    assert why(with_tools(orphan)) == ("quarantined", "tool_pairing_broken")
    record = with_tools()
    record["request"]["messages"].insert(0, orphan)
    assert parse(record).messages[0].role == "tool"


def test_tools_and_facts_are_kept_and_secrets_are_not() -> None:
    record = chat(
        "hi", session_id="s1", metadata={"route": "a", "api_key": "sk-1", "client_ip": "1"}
    )
    record["request"] |= {"functions": [{"name": "f"}], "user": "u1"}
    call = parse(record)
    assert call.tools == ({"type": "function", "function": {"name": "f"}},)
    assert (call.session, call.user, call.model) == ("s1", "u1", "big-70b")
    assert call.metadata == {"session": "s1", "user": "u1", "route": "a"}
