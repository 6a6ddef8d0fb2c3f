"""OpenAI fine-tune lines: messages whose assistant turns with weight other than 0 are taught."""

from typing import Any

from workers.ingest.formats import share
from workers.ingest.messages import messages_of, tools_of, unpack
from workers.ingest.values import LoggedCall, Unusable

NAME = "openai_finetune"


def sniff(sample: list[dict[str, Any]]) -> tuple[float, str]:
    fits = [isinstance(unpack(r.get("messages")), list) and "response" not in r for r in sample]
    return share(sample, fits), f"{sum(fits)} of {len(sample)} records are a list of messages"


def parse(record: dict[str, Any], line: int) -> LoggedCall:
    flags: set[str] = set()
    raw = unpack(record.get("messages"))
    messages = list(messages_of(raw, flags))
    for at, message in enumerate(messages):
        if message.role == "assistant":
            taught = raw[at].get("weight", 1) != 0
            off = tuple(flags) if taught else ("weight_0",)
            changed = {"is_target": taught and not flags, "flags": off}
            messages[at] = message.model_copy(update=changed)
    answer = messages[-1]
    if answer.role != "assistant":
        raise Unusable("no_answer_at_end")
    if not answer.content.strip() and not answer.tool_calls:
        raise Unusable("answer_empty")
    return LoggedCall(
        request=tuple(messages[:-1]),
        answer=answer,
        tools=tools_of(record),
        flags=answer.flags,
        line=line,
    )
