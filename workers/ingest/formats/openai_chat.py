"""OpenAI chat request and response logs."""

from typing import Any

from app.specs.conversation import Message
from workers.ingest.formats import share
from workers.ingest.messages import message_of, messages_of, tools_of, unpack
from workers.ingest.values import LoggedCall, Unusable

NAME = "openai_chat"
_WRAPPERS = (("request", "response"), ("input", "output"), ("request_body", "response_body"))
_OK = 200
_PINGS = {"ping", "health", "healthcheck", "health check", "are you alive?"}


def _pair(record: dict[str, Any]) -> tuple[Any, Any] | None:
    for ask, reply in _WRAPPERS:
        if ask in record:
            return unpack(record[ask]), unpack(record.get(reply))
    return None


def sniff(sample: list[dict[str, Any]]) -> tuple[float, str]:
    pairs = [_pair(record) for record in sample]
    fits = [p is not None and isinstance(p[0], dict) and "messages" in p[0] for p in pairs]
    return share(sample, fits), f"{sum(fits)} of {len(sample)} records hold a chat request"


def _join_calls(calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    for part in delta.get("tool_calls") or []:
        if not isinstance(part, dict):
            raise Unusable("stream_broken")
        index = part.get("index", 0)
        call = calls.setdefault(
            index if isinstance(index, int) else 0, {"name": "", "arguments": ""}
        )
        call["id"] = part.get("id") or call.get("id")
        function = part.get("function")
        if isinstance(function, dict):
            call["name"] += str(function.get("name") or "")
            call["arguments"] += str(function.get("arguments") or "")


def _join_chunks(chunks: list[Any]) -> dict[str, Any]:
    """Put the answer of a stream together again."""
    text, finish, model = "", None, None
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            continue
        model = chunk.get("model") or model
        finish = choices[0].get("finish_reason") or finish
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            text += str(delta.get("content") or "")
            _join_calls(calls, delta)
    ordered = [calls[index] for index in sorted(calls)]
    message = {"role": "assistant", "content": text, "tool_calls": ordered}
    return {"model": model, "choices": [{"message": message, "finish_reason": finish}]}


def _answer(response: Any, flags: set[str]) -> tuple[Message, str | None]:
    if response is None:
        raise Unusable("response_null")
    if isinstance(response, list):
        response = _join_chunks(response)
    if not isinstance(response, dict):
        raise Unusable("response_broken")
    if response.get("error"):
        raise Unusable("response_error", str(response["error"])[:200], skipped=True)
    if "choices" not in response and response.get("role") == "assistant":
        response = {"choices": [{"message": response}]}
    choices = unpack(response.get("choices"))
    if not isinstance(choices, list) or not choices:
        raise Unusable("choices_empty")
    raw = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(raw, dict):
        raise Unusable("answer_empty")
    answer = message_of({**raw, "role": "assistant"}, flags)
    if not answer.content.strip() and not answer.tool_calls:
        raise Unusable("answer_empty")
    finish = choices[0].get("finish_reason")
    if finish in ("length", "content_filter"):
        flags.add("cut_answer" if finish == "length" else "content_filter")
    model = response.get("model")
    changed = {"finish_reason": str(finish) if finish else None}
    return answer.model_copy(update=changed), str(model) if model else None


def _check_status(record: dict[str, Any]) -> None:
    status = record.get("status", record.get("response_status", record.get("status_code", _OK)))
    if isinstance(status, int) and status != _OK:
        raise Unusable(f"http_{status}", skipped=True)


def parse(record: dict[str, Any], line: int) -> LoggedCall:
    _check_status(record)
    pair = _pair(record)
    if pair is None or not isinstance(pair[0], dict):
        raise Unusable("request_missing")
    body, flags = pair[0], set[str]()
    request = messages_of(body.get("messages"), flags)
    answer, model = _answer(pair[1], flags)
    said = [m.content.strip().lower() for m in request if m.role == "user"]
    if len(said) == 1 and said[0] in _PINGS:
        flags.add("health_check")
    model = model or (str(body["model"]) if body.get("model") else None)
    meta = record.get("metadata")
    metadata = {k: str(v) for k, v in meta.items()} if isinstance(meta, dict) else {}
    when = record.get("timestamp")
    return LoggedCall(
        request=request,
        answer=answer.model_copy(update={"model": model}),
        tools=tools_of(body),
        model=model,
        metadata=metadata,
        flags=tuple(sorted(flags)),
        line=line,
        session=str(record["session_id"]) if record.get("session_id") else None,
        user=str(body["user"]) if body.get("user") else None,
        timestamp=str(when) if when is not None else None,
    )
