"""The child process: reads its inputs, runs the body, reports one value a line."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path

import orjson

from app.errors import AppError
from app.specs.events import ErrorEvent, ResultEvent
from workers.distill.disk import bytes_below, full_sentence, is_full
from workers.job.task import BodyContext, Task, UserError
from workers.sinks import PipeCallbacks, open_event_pipe

PR_SET_PDEATHSIG = 1
EXIT_STOPPED = 75
MOST_FILES = 1 << 20
"""Some libraries walk through all numbers a file might have."""


def die_with_parent(life_pipe: int) -> None:
    """Die when the supervisor dies: by signal where Linux gives one, else on EOF of a pipe."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(life_pipe, 1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def allow_more_files() -> None:
    """Let this process and those it starts open as many files as they may.

    A training holds every shard of its cache open, and the usual 1,024 are fewer than those.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some kernels allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_child(task: Task) -> int:
    """Run a task's body with the request on stdin; return the exit status."""
    pipe = open_event_pipe()
    allow_more_files()
    callbacks = PipeCallbacks(pipe)
    request = orjson.loads(sys.stdin.buffer.read())
    die_with_parent(request["life_pipe"])
    context = BodyContext(
        workdir=Path(request["workdir"]),
        blobs=Path(request["blobs"]),
        snapshots=tuple((step, Path(folder), sha) for step, folder, sha in request["snapshots"]),
        callbacks=callbacks,
    )
    try:
        result = task.run(task.inputs.model_validate(request["inputs"]), context)
    except MemoryError:
        callbacks.send(ErrorEvent(error="out_of_memory", message=OUT_OF_MEMORY))
        return 1
    except (UserError, AppError) as error:
        callbacks.send(ErrorEvent(error=type(error).__name__, message=str(error)))
        return 1
    except Exception as error:  # noqa: BLE001 - the boundary: anything else is a bug with a trace
        if callbacks.should_stop() and _has_base(error, "Stopped", "ImportStopped"):
            return EXIT_STOPPED  # no result: the supervisor ends or releases the job
        traceback.print_exc()
        full = is_full(error) and not _has_base(error, "DiskFullError")
        if not full and not _has_base(error, *NAMED):
            callbacks.log(traceback.format_exc(limit=-6), "error")
        callbacks.send(_disk_full(context) if full else _as_event(error))
        return 1
    callbacks.send(ResultEvent(payload=result))
    with contextlib.suppress(OSError):
        pipe.close()
    return EXIT_STOPPED if callbacks.should_stop() else 0


NAMED = ("DistillError", "IngestError")
"""Errors of the cores: a sentence for a person, no bug, so no trace."""
CALLED = {"OutOfMemoryError": "out_of_memory", "DiskFullError": "disk_full"}
"""What the cores name, and every attempt calls the same."""
OUT_OF_MEMORY = (
    "The body ran out of memory. Turn gradient checkpointing on, take a smaller micro-batch, fewer "
    "tokens a conversation, a smaller student, or a machine with more memory."
)


def _as_event(error: Exception) -> ErrorEvent:
    """Name what the cores name themselves; call the rest an internal error."""
    text = str(error)
    if _has_base(error, *NAMED):
        name = type(error).__name__
        return ErrorEvent(error=CALLED.get(name, name), message=text)
    if any(words in text.lower() for words in ("out of memory", "can't allocate memory")):
        return ErrorEvent(error="out_of_memory", message=OUT_OF_MEMORY)
    return ErrorEvent(error=type(error).__name__, message=f"{type(error).__name__}: {text}")


def _disk_full(context: BodyContext) -> ErrorEvent:
    """Say which disk is full where no core did: that of the body's own folder."""
    message = full_sentence(context.workdir, bytes_below(context.workdir))
    return ErrorEvent(error="disk_full", message=message)


def _has_base(error: Exception, *names: str) -> bool:
    """By name, since importing the cores loads torch, and each task needs only its own."""
    return any(base.__name__ in names for base in type(error).__mro__)
