"""Prompt and completion pairs: CSV with a header, or JSON lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.specs.conversation import Message
from workers.ingest.chat import TRUNCATION_MARKS
from workers.ingest.facts import facts_of
from workers.ingest.jsontext import kind_of
from workers.ingest.values import LoggedCall, Record, Sniff, quarantined

_PAIRS = (("prompt", "completion"), ("question", "answer"), ("input", "output"))
_SYSTEM = ("system", "system_prompt")
_NULL_WORDS = {"null", "none", "nan", "n/a", "na", "\\n", "undefined", "nil"}


def _columns(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the names, as the record spells them, of its prompt and its completion."""
    spelled = {str(key).strip().lower(): str(key) for key in record}
    for asked, answered in _PAIRS:
        if asked in spelled and answered in spelled:
            return spelled[asked], spelled[answered]
    return None


def _fits(record: Mapping[str, Any]) -> bool:
    found = _columns(record)
    return found is not None and all(isinstance(record[key], str | None) for key in found)


def _text(value: Any, what: str) -> str:
    if value is None:
        raise quarantined(f"{what}_null")
    if not isinstance(value, str):
        raise quarantined(f"{what}_broken", f"a {what} that is {kind_of(value)}")
    word = value.strip()
    if not word:
        raise quarantined(f"{what}_empty")
    if word.lower() in _NULL_WORDS:
        raise quarantined(f"{what}_null_word", word)
    for mark in TRUNCATION_MARKS:
        if mark in value:
            raise quarantined("truncated_by_logger", f"{mark}: export the log uncut")
    return value


class PromptCompletion:
    """Pairs under prompt/completion, question/answer or input/output, in any spelling of case."""

    name = "prompt_completion"

    def sniff(self, sample: Sequence[Mapping[str, Any]]) -> Sniff:
        fits = sum(map(_fits, sample))
        # A chat log in input/output wrappers fits here by its names alone: it must win.
        reason = f"{fits} of the first {len(sample)} records are a prompt and its completion"
        return Sniff(0.9 * fits / max(len(sample), 1), reason)

    def parse(self, record: Record) -> LoggedCall:
        found = _columns(record.value)
        if found is None:
            raise quarantined("no_prompt", "no prompt and completion side by side")
        prompt = _text(record.value[found[0]], "prompt")
        completion = _text(record.value[found[1]], "completion")
        messages = [Message(role="user", content=prompt)]
        spelled = {str(key).strip().lower(): key for key in record.value}
        system = next((record.value[spelled[key]] for key in _SYSTEM if key in spelled), None)
        if isinstance(system, str) and system.strip():
            messages.insert(0, Message(role="system", content=system))
        model = record.value.get(spelled.get("model", "model"))
        model = model if isinstance(model, str) and model.strip() else None
        return LoggedCall(
            messages=tuple(messages),
            answer=Message(role="assistant", content=completion, model=model),
            model=model,
            line=record.line,
            place=record.place,
            **facts_of(record.value),
        )


FORMAT = PromptCompletion()
