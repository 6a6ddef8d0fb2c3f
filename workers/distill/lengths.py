"""How many tokens each conversation of a file has, by a checkpoint's tokenizer and template."""

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.specs.dataset_file import COLUMNS, from_row
from app.specs.training import RenderSpec
from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.errors import TemplateError
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import load_tokenizer

NOT_COUNTED = -1
_BATCH = 64


def token_counts(
    conversations: Path, checkpoint: Path, callbacks: Callbacks, *, seconds: float = 60
) -> NDArray[np.int32]:
    """Return a count for each row; NOT_COUNTED where the template refuses it or time was up.

    A count is a help to readers, so nobody waits long for it. Errors: TokenizerError,
    TemplateError where the checkpoint has no template, Stopped.
    """
    renderer = Renderer(load_tokenizer(checkpoint), RenderSpec())
    file = pq.ParquetFile(conversations)
    counts = np.full(file.metadata.num_rows, NOT_COUNTED, np.int32)
    at, until = 0, time.monotonic() + seconds
    for batch in file.iter_batches(batch_size=_BATCH, columns=list(COLUMNS)):
        if callbacks.should_stop():
            raise Stopped("Counting tokens was stopped.")
        if time.monotonic() > until:
            callbacks.log(f"{at:,} of {len(counts):,} conversations have their tokens counted")
            break
        for row in batch.to_pylist():
            counts[at] = _count(renderer, row)
            at += 1
        callbacks.progress(at, len(counts), "conversations")
    return counts


def _count(renderer: Renderer, row: dict[str, object]) -> int:
    try:
        return renderer.length(from_row(row))
    except TemplateError:
        return NOT_COUNTED
