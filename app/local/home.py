"""A home folder: one launcher at a time, its servers, and what it remembers."""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from app.local.postgres import Postgres
from app.local.urls import write_servers
from app.local.valkey import Valkey
from app.settings import Settings

LOCK = "lock"
SERVED = "being served"
"""What a home is held for that answers over HTTP."""
LOCK_PAUSE_SECONDS = 0.1


class HomeInUseError(RuntimeError):
    """Another command holds this home."""


@dataclass
class HomeLock:
    """An flock on the home; it goes with the process, however that ends.

    `doing` says to others what the holder does; `patience` is for how many seconds to wait for it.
    """

    home: Path
    doing: str = SERVED
    patience: float = 1
    _file: TextIO | None = None

    @staticmethod
    def held_for(home: Path) -> str | None:
        """Return what the command that holds the home does, or None when none holds it."""
        path = home / LOCK
        if not path.exists():
            return None
        with path.open("a+") as handle:
            if _locked(handle):
                return None
            handle.seek(0)
            return handle.read().strip().partition(" ")[2] or "in use"

    def __enter__(self) -> Self:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = (self.home / LOCK).open("a+")
        deadline = time.monotonic() + self.patience
        while not _locked(handle):
            if time.monotonic() >= deadline:
                handle.seek(0)
                holder, _, doing = handle.read().strip().partition(" ")
                handle.close()
                raise HomeInUseError(
                    f"{self.home} is {doing or 'in use'} already (process {holder or 'unknown'}): "
                    "stop that one with Ctrl-C, or choose another folder with --home."
                )
            time.sleep(LOCK_PAUSE_SECONDS)
        handle.truncate(0)
        handle.write(f"{os.getpid()} {self.doing}")
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


def _locked(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
