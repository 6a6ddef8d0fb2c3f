"""How many tokens a conversation of a version has, as a run renders it."""

from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from app.datasets.models import DatasetVersion
from app.datasets.queries import text_sizes
from app.settings import Settings
from app.specs.training import RenderSpec
from app.storage.blobs import LocalBlobs
from app.teacher_cache import queries as cache

CHARACTERS_A_TOKEN = 4.0
TOKENS_A_MESSAGE = 5.0
"""Role and border tokens of a chat template."""


@lru_cache(maxsize=64)
def _text_sizes(path: Path, content_sha256: str) -> tuple[float, float]:
    del content_sha256  # part of the key: a frozen file never changes
    return text_sizes(path)


def tokens_a_conversation(
    session: Session, version: DatasetVersion, render: RenderSpec, settings: Settings
) -> tuple[float, str]:
    """Return mean rendered tokens of a conversation, and where the number comes from."""
    measured = cache.rendered_size(session, version.id, render)
    if measured is not None and measured.conversations:
        mean = measured.rows / measured.conversations + 1
        return mean, "Measured when the teacher cache was filled for this version."
    words = "Estimated from the length of its texts, four characters a token."
    if version.conversations_blob is None:
        return 0.0, words
    path = LocalBlobs(settings.blobs).path(version.conversations_blob)
    characters, messages = _text_sizes(path, version.content_sha256 or "")
    mean = characters / CHARACTERS_A_TOKEN + messages * TOKENS_A_MESSAGE
    return min(mean, render.max_tokens), words
