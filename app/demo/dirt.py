"""Logs with the dirt of real ones, and the exact truth of what an importer must find in them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

TEACHER = "support-teacher-70b"
START = 1_760_000_000
SECONDS_APART = 7.0
HEALTH_CHECKS = 10
CRLF_SHARE = 0.2
ESCAPED_SHARE = 0.5
"""Lines whose JSON escapes what is not ASCII."""
DIRT = [
    "retry",
    "retry",
    "exact",
    "429",
    "500",
    "null",
    "empty",
    "no_choices",
    "no_messages",
    "truncated",
    "truncated",
    "not_json",
    "not_object",
    "blank",
    "cut_by_logger",
]


@dataclass
class Truth:
    """What an importer must find: the funnel exactly, conversations as far as folding can tell.

    A damaged copy (NUL, lone surrogate) of a call is a duplicate of it; a cut answer and an answer
    to an image are calls and conversations, but teach nothing: they are no targets.
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


class Log:
    """Lines of one batch with their times, and what they are."""

    def __init__(self, random: Random, truth: Truth, *, reference: bool = False) -> None:
        self.random, self.truth, self.reference = random, truth, reference
        self.lines: list[tuple[float, bytes]] = []

    def identifier(self, prefix: str) -> str:
        return f"{prefix}{self.random.getrandbits(80):020x}"

    def raw(self, when: float, line: bytes) -> None:
        self.lines.append((when, line))
        self.truth.records += 1

    def pair(
        self,
        when: float,
        request: Any,
        response: Any,
        status: int = 200,
        *,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Write a request and its response as one record."""
        record = {
            "id": self.identifier("req_"),
            "timestamp": when,
            "status": status,
            "latency_ms": self.random.randrange(200, 5000),
            "request": request,
            "response": response,
        }
        if metadata:
            record["metadata"] = metadata
        self.raw(
            when, json.dumps(record, ensure_ascii=self.random.random() < ESCAPED_SHARE).encode()
        )


def response_to(
    log: Log,
    when: float,
    answer: dict[str, Any],
    finish: str | None = None,
    *,
    model: str = TEACHER,
) -> Any:
    """Return a chat completion whose message is `answer`."""
    reason = finish or ("tool_calls" if answer.get("tool_calls") else "stop")
    message = {"role": "assistant", "refusal": None, **answer}
    return {
        "id": log.identifier("chatcmpl-"),
        "object": "chat.completion",
        "created": int(when),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def dirty_copy(log: Log, when: float, request: Any, response: Any) -> None:
    """Write one line that repeats a good one, or would have been one."""
    truth = log.truth
    kind = log.random.choice(DIRT)
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
        log.pair(before, request, response_to(log, when, {"content": ""}))
        truth.skipped["answer_empty"] += 1
    elif kind == "no_choices":
        log.pair(before, request, {**response, "choices": []})
        truth.skipped["choices_empty"] += 1
    elif kind == "no_messages":
        log.pair(before, {**request, "messages": []}, response)
        truth.skipped["messages_empty"] += 1
    else:
        _broken_line(log, kind, before, request, response)


def _broken_line(log: Log, kind: str, when: float, request: Any, response: Any) -> None:
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


def health_checks(log: Log, start: float, count: int, *, model: str = TEACHER) -> None:
    """Write a monitor's calls: one of them is a call that teaches nothing, the rest repeat it."""
    request = {"model": model, "messages": [{"role": "user", "content": "ping"}]}
    for at in range(count):
        answer = response_to(log, start, {"content": "pong"}, model=model)
        log.pair(start + 600 * at, request, answer)
    log.truth.calls += 1
    log.truth.duplicates += count - 1
    log.truth.flagged["health_check"] += 1
    log.truth.conversations += 1


def write_traffic_log(
    path: Path,
    answers: Iterable[Mapping[str, Any]],
    references: Mapping[str, str],
    *,
    seed: int = 0,
    dirt: float = 0.1,
) -> Truth:
    """Write a model's answers as the production log they would have left, and return its truth.

    `answers` are records of one call each, {"request": {"messages": …}, "response": {…}}, as the
    job `generate` leaves them. `references` maps the last message of a request to the truth of its
    answer, kept at `metadata.reference`. `dirt` is the share of calls followed by a dirty line; the
    file also has a byte order mark, some CRLF ends and a monitor's health checks. The same
    arguments give the same bytes.
    """
    truth = Truth()
    log = Log(Random(seed), truth)  # noqa: S311 - made data, no secret
    model = TEACHER
    for number, answered in enumerate(answers):
        model = str(answered["response"].get("model", TEACHER))
        _call(log, START + SECONDS_APART * number, answered, references, dirt)
    health_checks(log, START, HEALTH_CHECKS, model=model)
    log.lines.sort(key=lambda pair: pair[0])
    with path.open("wb") as stream:
        stream.write(b"\xef\xbb\xbf")
        for _, line in log.lines:
            stream.write(line + (b"\r\n" if log.random.random() < CRLF_SHARE else b"\n"))
    return truth


def _call(
    log: Log,
    when: float,
    answered: Mapping[str, Any],
    references: Mapping[str, str],
    dirt: float,
) -> None:
    """Write one call as its server logged it, perhaps followed by a dirty line about it."""
    truth, request = log.truth, dict(answered["request"])
    choice = answered["response"]["choices"][0]
    text, finish = str(choice["message"]["content"]), str(choice.get("finish_reason") or "stop")
    model = str(answered["response"].get("model", TEACHER))
    request["model"] = model
    response = response_to(log, when, {"content": text}, finish, model=model)
    reference = references.get(str(request["messages"][-1]["content"]))
    log.pair(when, request, response, metadata={"reference": reference} if reference else None)
    if not text.strip():
        truth.skipped["answer_empty"] += 1
        return
    truth.calls += 1
    truth.conversations += 1
    if finish == "length":
        truth.flagged["cut_answer"] += 1
        return
    truth.targets += 1
    truth.references += reference is not None
    if log.random.random() < dirt:
        dirty_copy(log, when, request, response)
