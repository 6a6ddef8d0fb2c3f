"""A home folder: one launcher at a time, its servers, and what it remembers."""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from app.local.postgres import Postgres
from app.local.urls import write_servers
from app.local.valkey import Valkey
from app.settings import Settings


class HomeInUseError(RuntimeError):
    """Another `stillhouse up` serves this home."""


@dataclass
class HomeLock:
    """An flock on the home; it goes with the process, however that ends."""

    home: Path
    _file: TextIO | None = None

    def __enter__(self) -> Self:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = (self.home / "lock").open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise HomeInUseError(
                f"{self.home} is being served already (process {holder}): "
                "stop that one with Ctrl-C, or choose another folder with --home."
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        self._file = handle
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


class Servers:
    """The embedded Postgres and Valkey of a home, each only where no URL is given."""

    def __init__(self, settings: Settings) -> None:
        home = settings.home
        self._given = settings
        self.postgres = Postgres(home / "postgres") if settings.database_url is None else None
        self.valkey = _remembered_valkey(home) if settings.redis_url is None else None

    def start(self) -> Settings:
        """Start what is embedded and return settings that name both servers."""
        if self.postgres is not None:
            self.postgres.start()
        if self.valkey is not None:
            self.valkey.start()
        database = self.postgres.url() if self.postgres else self._given.require_database_url()
        broker = self.valkey.url if self.valkey else self._given.require_redis_url()
        if self.postgres is not None or self.valkey is not None:
            write_servers(self._given.home, database_url=database, redis_url=broker)
        return self._given.model_copy(update={"database_url": database, "redis_url": broker})

    def stop(self) -> None:
        if self.valkey is not None:
            self.valkey.stop()
        if self.postgres is not None:
            self.postgres.stop()


def _remembered_valkey(home: Path) -> Valkey:
    """Port and password are kept: programs of this home may hold the old URL over a restart."""
    path = home / "valkey.json"
    if path.exists():
        kept = json.loads(path.read_text())
        return Valkey(home / "valkey", port=kept["port"], password=kept["password"])
    valkey = Valkey.fresh(home / "valkey")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"port": valkey.port, "password": valkey.password}))
    return valkey
