"""A child process in its own group, with its event pipe and a pipe that tells it we live."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from app.specs.base import Spec
from app.specs.events import BODY_EVENT
from workers.job.gpu import GpuLock

STDERR_LINES = 40


class Child:
    """Spawned from the supervisor's main thread; the whole group is killed, never a part."""

    def __init__(
        self,
        command: Sequence[str],
        request: dict[str, Any],
        *,
        root: Path,
        gpus: Sequence[GpuLock] = (),
    ) -> None:
        life_read, self._life_write = os.pipe()
        try:
            body = orjson.dumps(request | {"life_pipe": life_read})
        except TypeError:
            os.close(life_read)
            os.close(self._life_write)
            raise
        os.set_inheritable(life_read, True)
        self.events: queue.SimpleQueue[Spec | None] = queue.SimpleQueue()
        self.stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(life_read, *(gpu.descriptor for gpu in gpus)),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(g.uuid for g in gpus)}  # noqa: TID251 - the child's own
            if gpus
            else None,
            cwd=root,
        )
        os.close(life_read)
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise RuntimeError("the child has no pipes")
        with contextlib.suppress(BrokenPipeError):
            stdin.write(body)
            stdin.close()
        self._threads = [
            threading.Thread(target=self._read_events, args=(stdout,), daemon=True),
            threading.Thread(target=self._read_stderr, args=(stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_events(self, stream: Any) -> None:
        for line in stream:
            with contextlib.suppress(ValidationError):
                self.events.put(BODY_EVENT.validate_json(line))
        self.events.put(None)

    def _read_stderr(self, stream: Any) -> None:
        for line in stream:
            self.stderr.append(line.decode(errors="replace").rstrip()[:500])

    def ask_to_stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole group and wait until no process of it is left."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)

    def close(self) -> None:
        """Release what is left after the child ended; stray group members are killed."""
        self.kill()
        for thread in self._threads:
            thread.join(timeout=5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self._life_write)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
