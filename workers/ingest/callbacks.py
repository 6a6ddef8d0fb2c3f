"""What the importer tells the world, as a protocol; the callbacks of the other core fit it too."""

from typing import Protocol


class Progress(Protocol):
    """Called from one thread, at most about ten times a second."""

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def log(self, text: str, level: str = "info") -> None: ...

    def should_stop(self) -> bool:
        """Whether to give up now, leaving nothing behind."""


class Quiet:
    """A listener that says nothing and never stops an import."""

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def log(self, text: str, level: str = "info") -> None: ...

    def should_stop(self) -> bool:
        return False
