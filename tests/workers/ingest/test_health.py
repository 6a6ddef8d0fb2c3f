"""A monitor's question is no target in any format, nor in the preview; a user's one is."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers.ingest.conftest import Load, chat
from workers.ingest.pipeline import inspect


def _lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _tune(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": t} for n, t in enumerate(texts)]}


FORMATS = {
    "openai_chat": (_lines(chat("Ping!", answer="pong"), chat("ticket", answer="a")), "log.jsonl"),
    "openai_finetune": (_lines(_tune("Ping!", "pong"), _tune("ticket", "a")), "log.jsonl"),
    "prompt_completion": (b"prompt,completion\nPing!,pong\nticket,a\n", "log.csv"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_health_check_is_off_as_a_target_in_every_format(
    name: str, load: Load, tmp_path: Path
) -> None:
    data, filename = FORMATS[name]
    result = load(data, filename)
    assert (result.funnel.format, result.funnel.calls) == (name, 2)
    assert (result.funnel.targets, result.funnel.flagged) == (1, {"health_check": 1})
    answers = {m.content: m for c in result.conversations for m in c.messages if m.is_target}
    assert set(answers) == {"a"}
    (tmp_path / filename).write_bytes(data)
    first = inspect([tmp_path / filename]).previews[0].conversation
    assert first is not None
    assert first.messages[-1].flags == ("health_check",)


def test_every_taught_turn_of_a_lone_ping_is_off(load: Load) -> None:
    turns = [("user", "ping"), ("assistant", "one"), ("assistant", "two")]
    line = {"messages": [{"role": role, "content": text} for role, text in turns]}
    result = load([line])
    assert result.funnel.targets == 0
    assert [m.flags for m in result.conversations[0].messages[1:]] == [("health_check",)] * 2


def test_a_conversation_that_only_begins_with_a_ping_is_kept(load: Load) -> None:
    result = load([_tune("ping", "pong", "my invoice is wrong", "sorry")])
    assert result.funnel.targets == 2
    assert not result.funnel.flagged
