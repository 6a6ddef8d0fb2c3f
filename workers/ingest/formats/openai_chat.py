"""OpenAI chat request and response logs, in the wrappers that gateways give them."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.specs.conversation import Message
from workers.ingest.chat import message_of, messages_of, tools_of
from workers.ingest.facts import facts_of
from workers.ingest.jsontext import kind_of, unpack, words
from workers.ingest.streams import chunks_of_sse, join_chunks
from workers.ingest.values import LoggedCall, Record, Sniff, quarantined, skipped

_WRAPPERS = (("request", "response"), ("input", "output"), ("request_body", "response_body"))
_STATUS = ("status", "status_code", "response_status", "http_status")
_WELL = {"success", "succeeded", "ok", "completed", "200"}
_CUT = {"length": "cut_answer", "max_tokens": "cut_answer", "content_filter": "content_filter"}


def _pair(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any] | None:
    """Return the request body and the response, unpacked; None when there is no request."""
    for asked, answered in _WRAPPERS:
        if asked in record and (asked != "input" or "output" in record):
            body = unpack(record[asked])
            if isinstance(body, list):
                body = {"messages": body}
            if isinstance(body, dict) and ("messages" in body or asked != "input"):
                return body, unpack(record.get(answered))
    if "messages" in record and ("response" in record or "choices" in record):
        return record, unpack(record["response"]) if "response" in record else record
    return None


def _check_status(record: Mapping[str, Any], response: Any) -> None:
    if isinstance(response, dict) and response.get("error"):
        raise skipped("error_response", words(response["error"]))
    for key in _STATUS:
        status = record.get(key)
        if isinstance(status, int | float) and not 200 <= status < 300:  # noqa: PLR2004 - HTTP
            raise skipped("error_status", words(status))
        if isinstance(status, str) and status.strip() and status.strip().lower() not in _WELL:
            raise skipped("error_status", words(status))


def _completion(response: Any) -> dict[str, Any]:
    """Return the response as a chat.completion, whatever way it was logged."""
    if response is None:
        raise skipped("response_null")
    if isinstance(response, str):
        response = chunks_of_sse(response) or response
    if isinstance(response, list):
        if len(response) == 1 and isinstance(response[0], dict) and "role" in response[0]:
            response = response[0]
        else:
            response = join_chunks(response)
    if not isinstance(response, dict):
        raise quarantined("response_broken", f"a response that is {kind_of(response)}")
    if "choices" not in response and response.get("role") == "assistant":
        return {"choices": [{"message": response}]}
    return response


def _answer(choice: Any, model: str | None) -> Message:
    """Return the message of a choice; its `flags` say why it is no target."""
    raw = unpack(choice.get("message")) if isinstance(choice, dict) else None
    if not isinstance(raw, dict):
        raise skipped("answer_empty", "a choice without a message")
    flags: set[str] = set()
    message = message_of(raw, flags, role="assistant")
    if not message.content.strip() and not message.tool_calls:
        raise skipped("answer_empty")
    finish = choice.get("finish_reason")
    if isinstance(finish, str) and finish in _CUT:
        flags.add(_CUT[finish])
    changed = {
        "finish_reason": words(finish) if finish else None,
        "model": model,
        "flags": tuple(sorted(flags)),
    }
    return message.model_copy(update=changed)


def _answers(completion: Mapping[str, Any], model: str | None) -> list[Message]:
    choices = unpack(completion.get("choices"))
    if not isinstance(choices, list):
        raise skipped("choices_missing")
    if not choices:
        raise skipped("choices_empty")
    return [_answer(choice, model) for choice in choices]


class OpenAiChat:
    """`{"request": {…}, "response": {…}}` and its kin: input/output, *_body, the flywheel's."""

    name = "openai_chat"

    def sniff(self, sample: Sequence[Mapping[str, Any]]) -> Sniff:
        pairs = [_pair(record) for record in sample]
        fits = sum(pair is not None and "messages" in pair[0] for pair in pairs)
        reason = f"{fits} of the first {len(sample)} records hold a chat request and its response"
        return Sniff(fits / max(len(sample), 1), reason)

    def parse(self, record: Record) -> LoggedCall:
        pair = _pair(record.value)
        if pair is None:
            raise quarantined("no_request", "neither request/response nor input/output")
        body, response = pair
        _check_status(record.value, response)
        completion = _completion(response)
        _check_status({}, completion)
        flags: set[str] = set()
        messages = messages_of(body.get("messages"), flags)
        named = completion.get("model") or body.get("model") or record.value.get("model")
        model = named if isinstance(named, str) else None
        answer, *others = _answers(completion, model)
        return LoggedCall(
            messages=messages,
            answer=answer,
            other_answers=tuple(others),
            tools=tools_of(body),
            model=model,
            flags=tuple(sorted(flags | set(answer.flags))),
            line=record.line,
            place=record.place,
            **facts_of(record.value, body),
        )


FORMAT = OpenAiChat()
