"""Prompt and completion pairs, as CSV or JSON lines."""

from typing import Any

from app.specs.conversation import Message
from workers.ingest.formats import share
from workers.ingest.values import LoggedCall, Unusable

NAME = "prompt_completion"
_PROMPTS = ("prompt", "question", "input", "query", "instruction", "user", "request")
_ANSWERS = ("completion", "answer", "output", "response", "assistant", "reply", "target")
_NULLS = {"null", "none", "nan", "n/a", "na", "\\n", "undefined"}


def _pick(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    lowered = {key.strip().lower(): key for key in record}
    return next((lowered[name] for name in names if name in lowered), None)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def sniff(sample: list[dict[str, Any]]) -> tuple[float, str]:
    fits = []
    for record in sample:
        ask, reply = _pick(record, _PROMPTS), _pick(record, _ANSWERS)
        both = ask is not None and reply is not None
        fits.append(both and _is_text(record[str(ask)]) and _is_text(record[str(reply)]))
    return share(sample, fits) * 0.9, f"{sum(fits)} of {len(sample)} records hold a pair of texts"


def _text(record: dict[str, Any], names: tuple[str, ...], what: str) -> str:
    key = _pick(record, names)
    value = record[key] if key is not None else None
    if value is None or not str(value).strip():
        raise Unusable(f"{what}_empty")
    if str(value).strip().lower() in _NULLS:
        raise Unusable(f"{what}_null_word", str(value)[:40])
    return str(value)


def parse(record: dict[str, Any], line: int) -> LoggedCall:
    ask, reply = _text(record, _PROMPTS, "prompt"), _text(record, _ANSWERS, "completion")
    system = _pick(record, ("system", "system_prompt"))
    request = [Message(role="user", content=ask)]
    if system is not None and record[system]:
        request.insert(0, Message(role="system", content=str(record[system])))
    model = str(record["model"]) if record.get("model") else None
    return LoggedCall(
        request=tuple(request),
        answer=Message(role="assistant", content=reply, model=model),
        model=model,
        line=line,
    )
