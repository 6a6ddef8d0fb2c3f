"""What the cores tell the world, as a protocol: a notebook, a test and a worker each bring one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Callbacks(Protocol):
    """Called from one thread. Nothing here may change what the core computes."""

    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def log(self, text: str, level: str = "info") -> None: ...

    def snapshot(
        self,
        step: int,
        folder: Path,
        manifest_sha256: str,
        *,
        best: bool = False,
        value: float | None = None,
    ) -> None:
        """Announce a complete, verified snapshot folder."""

    def resumed(self, step: int) -> None:
        """Announce after which step the work goes on: what was told beyond it is void."""

    def publish(self, payload: Mapping[str, Any]) -> None:
        """Announce a finished part, such as a teacher shard."""

    def should_stop(self) -> bool:
        """Whether to finish the step in hand, save, and return."""


class Stopped(Exception):
    """`should_stop` said so, and what was computed until then is no result."""


class Silent:
    """Callbacks that do nothing; `stop` may be set by a test."""

    stop = False

    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, unit: str) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def log(self, text: str, level: str = "info") -> None: ...

    def snapshot(
        self,
        step: int,
        folder: Path,
        manifest_sha256: str,
        *,
        best: bool = False,
        value: float | None = None,
    ) -> None: ...

    def resumed(self, step: int) -> None: ...

    def publish(self, payload: Mapping[str, Any]) -> None: ...

    def should_stop(self) -> bool:
        return self.stop
