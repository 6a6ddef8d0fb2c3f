"""All messages of an import as a tree: a history repeated by every line is stored once, on disk."""

import tempfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from app.specs.conversation import Message
from app.specs.split import DIGEST_BITS, template_digest
from workers.ingest.canonical import canon, spelling

ROOT = 0
MODULUS = (1 << 61) - 1
_HISTORY = 1 << 33  # a spelling seen in a history ranks after one that the model produced


class Spool:
    """An unnamed file for texts; memory keeps offsets only."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the spool
        self._end = 0
        self._moved = False

    def put(self, data: bytes) -> int:
        """Append bytes and return where they lie."""
        at = self._end
        if self._moved:
            self._file.seek(at)
            self._moved = False
        self._file.write(len(data).to_bytes(4, "little"))
        self._file.write(data)
        self._end += 4 + len(data)
        return at

    def get(self, at: int) -> bytes:
        self._moved = True
        self._file.seek(at)
        size = int.from_bytes(self._file.read(4), "little")
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def _payload(message: Message) -> bytes:
    """Return the message without what is known of its turn as a target."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [[c.name, c.arguments, c.id] for c in message.tool_calls]
    for key in ("tool_call_id", "name", "reasoning"):
        if (value := getattr(message, key)) is not None:
            found[key] = value
    if message.role != "assistant" and message.flags:
        found["flags"] = message.flags
    return orjson.dumps(found)


class Trie:
    """Nodes are messages after their history; about 200 bytes of memory each, texts on disk.

    `parent`, `children` (counts) and `said` (61-bit hash of what the message says) are indexed by
    node; node 0 is the root. `template` holds the nodes of leading system prompts and the hash of
    their templates.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._nodes: dict[int, int] = {}
        self.parent = array("q", [-1])
        self.children = array("q", [0])
        self.said = array("Q", [0])
        self._text = array("q", [-1])
        self._rank = array("Q", [0])
        self.template: dict[int, int] = {ROOT: 0}

    def insert(self, parent: int, message: Message, *, produced: bool) -> int:
        """Return the node of a message after `parent`, made when it is new."""
        digest = canon(message)
        key = parent << DIGEST_BITS | digest
        rank = spelling(message) + (0 if produced else _HISTORY)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = len(self.parent)
            self.parent.append(parent)
            self.children.append(0)
            self.children[parent] += 1
            self.said.append(digest % MODULUS)
            self._text.append(self._spool.put(_payload(message)))
            self._rank.append(rank)
            if message.role == "system" and parent in self.template:
                before = self.template[parent]
                self.template[node] = template_digest(before, message.content)
        elif rank < self._rank[node]:
            self._rank[node] = rank
            self._text[node] = self._spool.put(_payload(message))
        return node

    def path(self, node: int) -> tuple[list[int], list[int]]:
        """Return the leading system nodes and the nodes after them, down to `node`."""
        nodes: list[int] = []
        while node not in self.template:
            nodes.append(node)
            node = self.parent[node]
        head: list[int] = []
        while node != ROOT:
            head.append(node)
            node = self.parent[node]
        return head[::-1], nodes[::-1]

    def message(self, node: int) -> Mapping[str, Any]:
        """Return the fields of a node's message; calls are [name, arguments, position]."""
        found: Mapping[str, Any] = orjson.loads(self._spool.get(self._text[node]))
        return found
