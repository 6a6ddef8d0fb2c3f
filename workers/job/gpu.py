"""One job a graphics card: an flock on the card's UUID that the job's whole process tree holds.

The supervisor takes the lock and its child inherits it, so a card is free again only when the last
process of an attempt is gone, even where the supervisor was killed.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.settings import Settings

LOOK_SECONDS = 20


@dataclass(frozen=True, slots=True)
class GpuLock:
    """A card that is ours while `descriptor` is open in any process."""

    uuid: str
    descriptor: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def visible_gpus(settings: Settings) -> tuple[str, ...]:
    """Return the UUIDs of the cards that jobs may use: CUDA_VISIBLE_DEVICES, else all there are."""
    chosen = settings.cuda_visible_devices
    found = _installed()
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    cards = (_named(name, found) for name in names)
    return tuple(card for card in cards if card is not None)


def _named(name: str, found: Sequence[str]) -> str | None:
    if name.isdecimal():
        return found[int(name)] if int(name) < len(found) else None
    return next((uuid for uuid in found if uuid.startswith(name)), None)


def _installed() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    done = subprocess.run(  # noqa: S603 - the driver's own program
        [program, "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=LOOK_SECONDS,
    )
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return tuple(line.strip() for line in lines if line.startswith(("GPU-", "MIG-")))


def take_gpu(uuids: Sequence[str], folder: Path) -> GpuLock | None:
    """Lock the first card that no other job of this host holds, or return None."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # other users of the host lock the same cards here
    for uuid in uuids:
        descriptor = _open(folder / uuid)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return GpuLock(uuid, descriptor)
    return None


def _open(path: Path) -> int:
    """Open a lock file that any user of the host may have made; never through a link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o644)
