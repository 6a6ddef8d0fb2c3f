"""OpenAI fine-tune lines: a list of messages whose assistant turns are taught, weight 0 apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.ingest.chat import messages_of, tools_of
from workers.ingest.facts import facts_of
from workers.ingest.jsontext import unpack
from workers.ingest.values import LoggedCall, Record, Sniff, skipped

_NOT_HERE = ("response", "choices", "request", "output")


def _fits(record: Mapping[str, Any]) -> bool:
    listed = isinstance(unpack(record.get("messages")), list)
    return listed and not any(key in record for key in _NOT_HERE)


class OpenAiFinetune:
    """`{"messages": […], "tools": […]}`; every assistant turn with weight ≠ 0 is a target."""

    name = "openai_finetune"

    def sniff(self, sample: Sequence[Mapping[str, Any]]) -> Sniff:
        fits = sum(map(_fits, sample))
        reason = f"{fits} of the first {len(sample)} records are a list of messages"
        return Sniff(fits / max(len(sample), 1), reason)

    def parse(self, record: Record) -> LoggedCall:
        raw = unpack(record.value.get("messages"))
        flags: set[str] = set()
        messages = list(messages_of(raw, flags))
        for at, message in enumerate(messages):
            if message.role == "assistant":
                weightless = unpack(raw[at]).get("weight") == 0
                off = tuple(sorted({*flags, "weight_0"} if weightless else flags))
                changed = {"is_target": not off, "flags": off}
                messages[at] = message.model_copy(update=changed)
        answer = messages.pop()
        if answer.role != "assistant":
            raise skipped("ends_without_answer", f"the last message is a {answer.role} message")
        if not answer.content.strip() and not answer.tool_calls:
            raise skipped("answer_empty")
        model = record.value.get("model")
        return LoggedCall(
            messages=tuple(messages),
            answer=answer.model_copy(update={"is_target": False}),
            tools=tools_of(record.value),
            model=model if isinstance(model, str) else None,
            flags=answer.flags,
            line=record.line,
            place=record.place,
            **facts_of(record.value),
        )


FORMAT = OpenAiFinetune()
