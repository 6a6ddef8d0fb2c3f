"""Writes conversations as one Parquet file with the same bytes for the same conversations."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.specs.conversation import Conversation
from app.specs.dataset_file import to_row

_TYPES = {"n_messages": pa.int32(), "n_targets": pa.int32(), "has_reference": pa.bool_()}
_ROWS = 1000


def write(path: Path, conversations: Sequence[Conversation], columns: Sequence[str]) -> None:
    """Write `conversations` to `path` in their order, in row groups of 1,000."""
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in columns])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for at in range(0, len(conversations), _ROWS):
            rows = [to_row(item) for item in conversations[at : at + _ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
