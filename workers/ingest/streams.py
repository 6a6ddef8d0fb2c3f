"""Streamed answers put together again: lists of chat.completion.chunk, or their SSE text."""

from collections.abc import Sequence
from typing import Any

from workers.ingest.jsontext import unpack, words
from workers.ingest.values import quarantined


def chunks_of_sse(text: str) -> list[Any]:
    """Return the chunks of a server-sent stream logged as text; empty when it is none."""
    data = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [unpack(item) for item in data if item and item != "[DONE]"]


class _Choice:
    """The message of one choice while its deltas come in."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"content": [], "refusal": [], "reasoning_content": []}
        self.calls: dict[int, dict[str, str]] = {}
        self.legacy: dict[str, str] | None = None
        self.finish: Any = None

    def take(self, delta: Any) -> None:
        if not isinstance(delta, dict):
            return
        for key, texts in self.texts.items():
            if isinstance(delta.get(key), str):
                texts.append(delta[key])
        for part in delta.get("tool_calls") or []:
            if not isinstance(part, dict):
                raise quarantined("stream_broken", "a piece of a tool call that is no object")
            index = part.get("index")
            at = index if isinstance(index, int) else len(self.calls)
            call = self.calls.setdefault(at, {"name": "", "arguments": ""})
            call["id"] = str(part.get("id") or call.get("id") or "")
            self._append(call, part.get("function"))
        if isinstance(delta.get("function_call"), dict):
            self.legacy = self.legacy or {"name": "", "arguments": ""}
            self._append(self.legacy, delta["function_call"])

    @staticmethod
    def _append(call: dict[str, str], function: Any) -> None:
        if isinstance(function, dict):
            call["name"] += words(function.get("name") or "")
            call["arguments"] += words(function.get("arguments") or "")

    def message(self) -> dict[str, Any]:
        calls = [
            {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
            for _, call in sorted(self.calls.items())
        ]
        texts = {key: "".join(parts) for key, parts in self.texts.items()}
        return {"role": "assistant", **texts, "tool_calls": calls, "function_call": self.legacy}


def join_chunks(chunks: Sequence[Any]) -> dict[str, Any]:
    """Return the chat.completion that a stream of chunks tells; a usage-only chunk is passed over.

    A stream that never reports a finish_reason was cut: it counts as finished by length.
    """
    choices: dict[int, _Choice] = {}
    model: Any = None
    for raw in chunks:
        chunk = unpack(raw)
        if not isinstance(chunk, dict):
            raise quarantined("stream_broken", "a chunk that is no object")
        if chunk.get("error"):
            return {"error": chunk["error"]}
        model = chunk.get("model") or model
        for part in chunk.get("choices") or []:
            if not isinstance(part, dict):
                raise quarantined("stream_broken", "a choice that is no object")
            index = part.get("index")
            choice = choices.setdefault(index if isinstance(index, int) else 0, _Choice())
            choice.take(part.get("delta"))
            choice.finish = part.get("finish_reason") or choice.finish
    found = [
        {"index": at, "message": choice.message(), "finish_reason": choice.finish or "length"}
        for at, choice in sorted(choices.items())
    ]
    return {"model": model, "choices": found}
