"""Writes conversations as one Parquet file: same conversations, same bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.specs.conversation import Conversation
from app.specs.dataset_file import COLUMNS, to_row

_COUNTS = ("n_messages", "n_targets", "n_turns", "n_chars")
_TYPES = {**dict.fromkeys(_COUNTS, pa.int32()), "has_reference": pa.bool_()}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in COLUMNS])
_GROUP_ROWS = 1000
_GROUP_CHARS = 8 << 20


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations in their order; memory holds one row group (1,000 rows or 8 MiB)."""
    rows: list[dict[str, Any]] = []
    size = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for conversation in conversations:
            row = to_row(conversation)
            size += len(row["messages"]) + len(row["tools"])
            rows.append(row)
            if len(rows) >= _GROUP_ROWS or size >= _GROUP_CHARS:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
