"""Shared makers of records and imports for the importer's tests."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from app.specs.conversation import Conversation, ImportFunnel
from app.specs.dataset_file import from_row
from workers.ingest.pipeline import import_files


class Imported:
    """What an import of some text left: funnel, conversations in their order, rejects."""

    def __init__(self, folder: Path, funnel: ImportFunnel) -> None:
        self.folder, self.funnel = folder, funnel
        table = pq.read_table(folder / "conversations.parquet")
        self.rows = table.to_pylist()
        self.conversations: list[Conversation] = [from_row(row) for row in self.rows]
        lines = (folder / "rejects.jsonl").read_text().splitlines()
        self.rejects: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def texts(self) -> list[list[str]]:
        return [[m.content for m in c.messages] for c in self.conversations]

    def said(self) -> set[tuple[str, str, str]]:
        """Everything about the conversations that must not depend on the order of lines."""
        return {(c.id, c.group, c.split) for c in self.conversations}


Load = Callable[..., Imported]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Import bytes, or an iterable of records (JSON lines), under a file name."""

    def run(data: bytes | Iterable[Any], name: str = "log.jsonl", **options: Any) -> Imported:
        if not isinstance(data, bytes):
            data = b"".join(json.dumps(record).encode() + b"\n" for record in data)
        path, out = tmp_path / "upload", tmp_path / "out"
        path.write_bytes(data)
        return Imported(out, import_files([path], names=[name], out_dir=out, **options))

    return run


def chat(*texts: str, answer: Any = "fine", **extra: Any) -> dict[str, Any]:
    """A logged call: `texts` alternate user and assistant, "s:" in front makes a system prompt."""
    messages: list[dict[str, Any]] = []
    for text in texts:
        if text.startswith("s:"):
            messages.append({"role": "system", "content": text[2:]})
        else:
            last = messages[-1]["role"] if messages else "system"
            messages.append({"role": "assistant" if last == "user" else "user", "content": text})
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    response = {"object": "chat.completion", "model": "big-70b", "choices": [choice]}
    return {"request": {"messages": messages}, "response": response, **extra}
