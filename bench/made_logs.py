"""Made traffic logs with the dirt of real ones and their exact truth, for tests, demo and bench."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from bench.made_dialogues import Dialogue, dialogue

TEACHER = "support-teacher-70b"
_BATCH = 200  # dialogues whose lines are interleaved, as traffic is
_START = 1_760_000_000
WINDOW = 6


@dataclass
class Truth:
    """What an importer must find: the funnel exactly, conversations as far as folding can tell.

    A damaged copy (NUL, lone surrogate) of a call is a duplicate of it; a cut answer and an answer
    to an image are calls, but teach nothing and are no conversation of their own.
    """

    records: int = 0
    calls: int = 0
    duplicates: int = 0
    conversations: int = 0
    targets: int = 0
    references: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)

    @property
    def usable(self) -> int:
        return self.calls + self.duplicates


class _Log:
    """Lines of one batch with their times, and what they are."""

    def __init__(self, random: Random, truth: Truth, *, reference: bool) -> None:
        self.random, self.truth, self.reference = random, truth, reference
        self.lines: list[tuple[float, bytes]] = []

    def identifier(self, prefix: str) -> str:
        return f"{prefix}{self.random.getrandbits(80):020x}"

    def raw(self, when: float, line: bytes) -> None:
        self.lines.append((when, line))
        self.truth.records += 1

    def pair(self, when: float, request: Any, response: Any, status: int = 200) -> None:
        record = {
            "id": self.identifier("req_"),
            "timestamp": when,
            "status": status,
            "latency_ms": self.random.randrange(200, 5000),
            "request": request,
            "response": response,
        }
        self.raw(when, json.dumps(record, ensure_ascii=self.random.random() < 0.5).encode())


def _response(log: _Log, when: float, answer: dict[str, Any], finish: str | None = None) -> Any:
    reason = finish or ("tool_calls" if answer.get("tool_calls") else "stop")
    message = {"role": "assistant", "refusal": None, **answer}
    return {
        "id": log.identifier("chatcmpl-"),
        "object": "chat.completion",
        "created": int(when),
        "model": TEACHER,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def _chunks(log: _Log, when: float, answer: dict[str, Any]) -> list[Any]:
    """Give the answer as the chunks of a stream, the usage-only one last."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    content = answer.get("content") or ""
    deltas += [{"content": content[at : at + 7]} for at in range(0, len(content), 7)]
    for index, call in enumerate(answer.get("tool_calls", [])):
        name, text = call["function"]["name"], call["function"]["arguments"]
        deltas.append(
            {"tool_calls": [{"index": index, "id": call["id"], "function": {"name": name}}]}
        )
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": text[at : at + 5]}}]}
            for at in range(0, len(text), 5)
        ]
    base = {"id": log.identifier("chatcmpl-"), "object": "chat.completion.chunk", "model": TEACHER}
    found: list[Any] = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    found.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    found.append({**base, "choices": [], "usage": {"total_tokens": 110}})
    return found


def _as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spell every text as a list of one part, as some clients do."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if m.get("content") else m
        for m in messages
    ]


def _with_image(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    last = messages[-1]
    return [*messages[:-1], {**last, "content": [{"type": "text", "text": last["content"]}, image]}]


def _dirty_copy(log: _Log, when: float, request: Any, response: Any) -> None:
    """Write one line that repeats a good one, or would have been one."""
    truth = log.truth
    kind = log.random.choice(
        ("retry", "retry", "exact", "429", "500", "null", "empty", "no_choices", "no_messages")
        + ("truncated", "truncated", "not_json", "not_object", "blank", "cut_by_logger")
    )
    before = when - 0.4
    if kind == "retry":
        log.pair(when + 0.3, request, {**response, "id": log.identifier("chatcmpl-")})
        truth.duplicates += 1
    elif kind == "exact":
        log.raw(when + 0.3, log.lines[-1][1])
        truth.duplicates += 1
    elif kind == "429":
        log.pair(before, request, {"error": {"message": "Rate limit reached", "code": 429}}, 429)
        truth.skipped["error_response"] += 1
    elif kind == "500":
        log.pair(before, request, None, 500)
        truth.skipped["error_status"] += 1
    elif kind == "null":
        log.pair(before, request, None)
        truth.skipped["response_null"] += 1
    elif kind == "empty":
        log.pair(before, request, _response(log, when, {"content": ""}))
        truth.skipped["answer_empty"] += 1
    elif kind == "no_choices":
        log.pair(before, request, {**response, "choices": []})
        truth.skipped["choices_empty"] += 1
    elif kind == "no_messages":
        log.pair(before, {**request, "messages": []}, response)
        truth.skipped["messages_empty"] += 1
    else:
        _broken_line(log, kind, before, request, response)


def _broken_line(log: _Log, kind: str, when: float, request: Any, response: Any) -> None:
    truth = log.truth
    if kind == "truncated":
        whole = json.dumps({"request": request, "response": response}).encode()
        log.raw(when, whole[: log.random.randrange(20, len(whole) - 2)])
        truth.quarantined["json_truncated"] += 1
    elif kind == "not_json":
        log.raw(when, b"INFO gateway log rotated")
        truth.quarantined["not_json"] += 1
    elif kind == "not_object":
        log.raw(when, log.random.choice((b"null", b"[]", b"17")))
        truth.quarantined["not_an_object"] += 1
    elif kind == "blank":
        log.raw(when, b"")
        truth.skipped["blank_line"] += 1
    else:
        messages = request["messages"]
        cut = {**messages[-1], "content": "begin ... (litellm_truncated 1300 chars) ... end"}
        log.pair(when, {**request, "messages": [*messages[:-1], cut]}, response)
        truth.quarantined["truncated_by_logger"] += 1


def _variant(log: _Log, when: float, request: Any, answer: dict[str, Any], *, plain: bool) -> None:
    """Write a further call to the same request: another answer, a cut one, an image, damage."""
    truth = log.truth
    messages = request["messages"]
    text = str(answer.get("content") or "")
    kind = log.random.choice(("again", "cut", "image", "damaged"))
    if kind == "again":
        other = {"content": f"Another way to put it: {log.identifier('')}"}
        log.pair(when + 0.2, request, _response(log, when, other))
        truth.calls += 1
        truth.conversations += 1
        truth.targets += 1
        truth.references += log.reference
    elif kind == "cut" and text and plain:
        log.pair(when - 0.2, request, _response(log, when, {"content": text[:4]}, "length"))
        truth.calls += 1
        truth.flagged["cut_answer"] += 1
    elif kind == "image" and messages[-1]["role"] == "user" and len(messages) > 2 and plain:
        asked = {**request, "messages": _with_image(messages)}
        log.pair(when + 0.2, asked, _response(log, when, answer))
        truth.calls += 1
        truth.flagged["image"] += 1
    else:
        bad = log.random.choice(("\x00", "\ud800"))
        damaged = {**messages[-1], "content": str(messages[-1]["content"]) + bad}
        record = {
            "timestamp": when + 0.2,
            "request": {**request, "messages": [*messages[:-1], damaged]},
            "response": _response(log, when, answer),
        }
        log.raw(when + 0.2, json.dumps(record).encode())
        truth.duplicates += 1


def _turns(log: _Log, made: Dialogue, start: float, dirt: float) -> None:
    random = log.random
    plain = made.style in ("plain", "parts", "legacy")
    for turn, (history, answer) in enumerate(made.calls()):
        when = start + 40 * turn
        messages = history
        if made.style == "window":
            messages = history[:1] + history[1:][-WINDOW:]
        elif made.style == "clock":
            stamp = f"2026-09-{1 + turn:02d} 06:{turn:02d}:57"
            messages = [{**history[0], "content": f"{history[0]['content']} Time: {stamp}."}]
            messages += history[1:]
        request = {"model": TEACHER, "messages": messages, **made.tools, "user": made.user}
        if log.reference:
            request["metadata"] = {"reference": made.reference(turn)}
        sent = request
        if made.style == "parts" and turn % 2:
            sent = {**request, "messages": _as_parts(messages)}
        response = _response(log, when, answer)
        streamed = random.random() < 0.03 and not answer.get("function_call")
        log.pair(when, sent, _chunks(log, when, answer) if streamed else response)
        log.truth.calls += 1
        log.truth.targets += 1
        log.truth.references += log.reference
        if random.random() < dirt:
            _dirty_copy(log, when, request, response)
        if random.random() < dirt / 3 and isinstance(messages[-1]["content"], str):
            _variant(log, when, request, answer, plain=plain)


def _health_checks(log: _Log, start: float, count: int) -> None:
    request = {"model": TEACHER, "messages": [{"role": "user", "content": "ping"}]}
    for at in range(count):
        log.pair(start + 600 * at, request, _response(log, start, {"content": "pong"}))


def _batches(
    seed: int, dialogues: int, dirt: float, truth: Truth, *, reference: bool
) -> Iterator[list[bytes]]:
    random = Random(seed)  # noqa: S311 - made data, no secret
    for first in range(0, dialogues, _BATCH):
        log = _Log(random, truth, reference=reference)
        for number in range(first, min(first + _BATCH, dialogues)):
            start = _START + 300 * number + random.random()
            _turns(log, dialogue(random, number), start, dirt)
            truth.conversations += 1
        if first == 0 and dirt:
            _health_checks(log, _START, 10)
            truth.calls += 1
            truth.duplicates += 9
            truth.flagged["health_check"] += 1
            truth.conversations += 1
        log.lines.sort(key=lambda pair: pair[0])
        yield [line for _, line in log.lines]


def write_chat_log(
    path: Path,
    *,
    seed: int = 0,
    dialogues: int = 100,
    dirt: float = 0.1,
    bom: bool = False,
    reference: bool = False,
) -> Truth:
    """Write an OpenAI chat log of multi-turn dialogues and return its truth.

    `dirt` is the share of calls followed by a dirty line; 0 gives a clean log. With `reference`
    every request carries `metadata.reference`. The same arguments give the same bytes.
    """
    truth = Truth()
    with path.open("wb") as stream:
        if bom:
            stream.write(b"\xef\xbb\xbf")
        for lines in _batches(seed, dialogues, dirt, truth, reference=reference):
            stream.writelines(line + b"\n" for line in lines)
    return truth
