"""Made multi-turn traffic logs with tools, dirt and their exact truth, for tests and bench."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from app.demo.dirt import START, TEACHER, Log, Truth, dirty_copy, health_checks, response_to
from bench.made_dialogues import Dialogue, dialogue

_BATCH = 200  # dialogues whose lines are interleaved, as traffic is
WINDOW = 6


def _chunks(log: Log, when: float, answer: dict[str, Any]) -> list[Any]:
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


def _variant(log: Log, when: float, request: Any, answer: dict[str, Any], *, plain: bool) -> None:
    """Write a further call to the same request: another answer, a cut one, an image, damage."""
    truth = log.truth
    messages = request["messages"]
    text = str(answer.get("content") or "")
    kind = log.random.choice(("again", "cut", "image", "damaged"))
    if kind == "again":
        other = {"content": f"Another way to put it: {log.identifier('')}"}
        log.pair(when + 0.2, request, response_to(log, when, other))
        truth.calls += 1
        truth.conversations += 1
        truth.targets += 1
        truth.references += log.reference
    elif kind == "cut" and text and plain:
        log.pair(when - 0.2, request, response_to(log, when, {"content": text[:4]}, "length"))
        truth.calls += 1
        truth.flagged["cut_answer"] += 1
    elif kind == "image" and messages[-1]["role"] == "user" and len(messages) > 2 and plain:
        asked = {**request, "messages": _with_image(messages)}
        log.pair(when + 0.2, asked, response_to(log, when, answer))
        truth.calls += 1
        truth.flagged["image"] += 1
    else:
        bad = log.random.choice(("\x00", "\ud800"))
        damaged = {**messages[-1], "content": str(messages[-1]["content"]) + bad}
        record = {
            "timestamp": when + 0.2,
            "request": {**request, "messages": [*messages[:-1], damaged]},
            "response": response_to(log, when, answer),
        }
        log.raw(when + 0.2, json.dumps(record).encode())
        truth.duplicates += 1


def _turns(log: Log, made: Dialogue, start: float, dirt: float) -> None:
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
        response = response_to(log, when, answer)
        streamed = random.random() < 0.03 and not answer.get("function_call")
        log.pair(when, sent, _chunks(log, when, answer) if streamed else response)
        log.truth.calls += 1
        log.truth.targets += 1
        log.truth.references += log.reference
        if random.random() < dirt:
            dirty_copy(log, when, request, response)
        if random.random() < dirt / 3 and isinstance(messages[-1]["content"], str):
            _variant(log, when, request, answer, plain=plain)


def _batches(
    seed: int, dialogues: int, dirt: float, truth: Truth, *, reference: bool
) -> Iterator[list[bytes]]:
    random = Random(seed)  # noqa: S311 - made data, no secret
    for first in range(0, dialogues, _BATCH):
        log = Log(random, truth, reference=reference)
        for number in range(first, min(first + _BATCH, dialogues)):
            start = START + 300 * number + random.random()
            _turns(log, dialogue(random, number), start, dirt)
            truth.conversations += 1
        if first == 0 and dirt:
            health_checks(log, START, 10)
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
