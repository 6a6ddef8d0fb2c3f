"""What several tasks need: a version's conversations, a checkpoint's folder, no parts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.datasets.models import DatasetVersion
from app.datasets.service import conversations_path
from app.errors import Conflict, NotFound
from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import Conversation
from app.specs.dataset_file import COLUMNS, from_row
from app.storage.blobs import LocalBlobs


class NoParts:
    """A task whose result comes whole."""

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None:
        del session, held, payload, settings


def version_path(session: Session, version_id: int, settings: Settings) -> str:
    """Return the conversations file of a version, or raise what a person should read."""
    version = session.get(DatasetVersion, version_id)
    if version is None:
        raise NotFound("The dataset version was removed.")
    return str(conversations_path(version, settings).absolute())


def checkpoint_folder(
    session: Session, checkpoint_id: int, settings: Settings
) -> tuple[str, CheckpointCard]:
    """Return the folder of a ready checkpoint's weights, and its card.

    Raises Conflict for one behind a server: it has no weights here.
    """
    folder, card = tokenizer_folder(session, checkpoint_id, settings)
    if card.server is not None:
        raise Conflict(
            f"{card.server.model} is behind a server, and this needs its weights: register them "
            "from a folder or a hub."
        )
    return folder, card


def tokenizer_folder(
    session: Session, checkpoint_id: int, settings: Settings
) -> tuple[str, CheckpointCard]:
    """Return the folder of a ready checkpoint's tokenizer, also of one behind a server; its card.

    Raises Conflict where no tokenizer is known.
    """
    row = checkpoints.require_ready(session, checkpoint_id)
    folder = LocalBlobs(settings.blobs).path(str(row.blob)).absolute()
    card = CheckpointCard.model_validate(row.card)
    if card.tokenizer_fingerprint is None:
        raise Conflict(f"“{row.name}” was registered without a tokenizer: its ids are unknown.")
    return str(folder), card


def read_conversations(path: str, splits: Iterable[str]) -> list[Conversation]:
    """Return the conversations of some splits that have a target, in the file's order."""
    table = pq.read_table(Path(path), columns=list(COLUMNS), filters=[("split", "in", set(splits))])
    read = (from_row(row) for row in table.to_pylist())
    return [c for c in read if any(m.is_target for m in c.messages)]
