"""Further processes that share a body's steps: started beside it, ended with it, missed by name."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import orjson
import torch

from app.specs.events import ErrorEvent
from workers.distill.errors import DistillError, RankLostError
from workers.distill.ranks import ALONE, Ranks, joined
from workers.job.child import die_with_parent
from workers.job.task import BodyContext, Inputs, SharedTask
from workers.sinks import PipeCallbacks, open_event_pipe

MODULE = "workers.tasks.rank"
GRACE_SECONDS = 20.0
"""A body whose peer is gone hears of it from the sockets; on graphics cards it may not."""
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def sharing(
    kind: str, wanted: int, inputs: Inputs, context: BodyContext, module: str = MODULE
) -> Iterator[Ranks]:
    """Yield the first rank's place, once the others work too.

    They get the same inputs and snapshots. On graphics cards there is one a rank, so there may be
    fewer than wanted. All are in the child's process group: a stop or a kill reaches every one.
    Errors: RankLostError where one ends before its time.
    """
    count = min(wanted, torch.cuda.device_count()) if torch.cuda.is_available() else wanted
    if count < wanted:
        context.callbacks.log(
            f"{wanted} processes were asked for, and {count} graphics cards are free: the steps "
            "are shared by so many. Losses stay the same.",
            "warning",
        )
    if count <= 1:
        yield ALONE
        return
    meeting = context.workdir / f"ranks-{os.getpid()}"
    with _Helpers(kind, count, inputs, context, meeting, module) as helpers:
        try:
            with joined(0, count, meeting, place_of(0)) as ranks:
                yield ranks
        except DistillError:
            raise
        except Exception as error:
            lost = helpers.lost(GRACE_SECONDS / 4)
            if lost is None:
                raise
            raise RankLostError(lost) from error


def place_of(rank: int) -> torch.device:
    """Return where a rank computes: on its own graphics card, which becomes the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


class _Helpers:
    """The processes of the other ranks."""

    def __init__(
        self,
        kind: str,
        count: int,
        inputs: Inputs,
        context: BodyContext,
        meeting: Path,
        module: str,
    ) -> None:
        self.context, self.count = context, count
        self._over, self._lock = threading.Event(), threading.Lock()
        self._lost: str | None = None
        """Of the first that was lost: what it said can be read once."""
        life_read, self._life_write = os.pipe()
        os.set_inheritable(life_read, True)
        request = {
            "inputs": inputs.model_dump(mode="json"),
            "workdir": str(context.workdir),
            "blobs": str(context.blobs),
            "snapshots": [list(s) for s in context.snapshots],
            "life_pipe": life_read,
            "count": count,
            "meeting": str(meeting),
        }
        self._started: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        for rank in range(1, count):
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", module, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(life_read,),
            )
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("the process has no pipes")
            process.stdin.write(orjson.dumps({**request, "rank": rank}, default=str))
            process.stdin.close()
            self._started.append((process, process.stdout))
        os.close(life_read)
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let them end, and end those that do not."""
        self._over.set()
        until = time.monotonic() + GRACE_SECONDS
        for process, stdout in self._started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            stdout.close()
        os.close(self._life_write)

    def lost(self, seconds: float) -> str | None:
        """Return in words which rank ended before its time; wait so long for one to do so."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                for rank, (process, stdout) in enumerate(self._started, start=1):
                    if self._lost is None and process.poll():
                        code, said = process.returncode, stdout.read()
                        self._lost = lost_words(rank + 1, self.count, code, said)
                if self._lost is not None:
                    return self._lost
            if time.monotonic() >= until:
                return None
            time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        """End the body where it does not hear by itself that a rank is gone."""
        while not self._over.wait(LOOK_SECONDS):
            lost = self.lost(0)
            if lost is not None and not self._over.wait(GRACE_SECONDS):
                self.context.callbacks.send(ErrorEvent(error="RankLostError", message=lost))
                os._exit(1)


def lost_words(number: int, count: int, code: int, said: bytes) -> str:
    """Return what a person reads of a lost process; said: what it wrote before it ended."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"Process {number} of {count}: {orjson.loads(said)['message']}"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return (
        f"Process {number} of {count} {how}, and the training with it. The log of its worker says "
        "more. Try again: it goes on from the last snapshot; if memory ran out, share the steps "
        "among fewer processes."
    )


def run_rank(task: SharedTask) -> int:
    """Take part in a body as one of its further ranks; return the exit status.

    What it says goes nowhere, but an error that has a name goes to the first rank.
    """
    pipe = open_event_pipe()
    request = orjson.loads(sys.stdin.buffer.read())
    die_with_parent(request["life_pipe"])
    with Path(os.devnull).open("wb") as nowhere:
        context = BodyContext(
            workdir=Path(request["workdir"]),
            blobs=Path(request["blobs"]),
            snapshots=tuple((step, Path(f), sha) for step, f, sha in request["snapshots"]),
            callbacks=PipeCallbacks(nowhere),
        )
        inputs = task.inputs.model_validate(request["inputs"])
        rank, count = request["rank"], request["count"]
        try:
            with joined(rank, count, Path(request["meeting"]), place_of(rank)) as ranks:
                task.share(inputs, context, ranks)
        except DistillError as error:
            pipe.write(orjson.dumps({"message": str(error)}))
            pipe.close()
            return 1
    return 0
