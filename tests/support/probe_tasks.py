"""A job body for tests of the mechanism: counts steps, snapshots every second one, resumes.

`python -m tests.support.probe_tasks train` is its child process.
"""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.jobs import JobKind
from workers.distill.callbacks import Stopped
from workers.distill.errors import ContextLengthError, DiskFullError, OutOfMemoryError
from workers.job.child import run_child
from workers.job.task import BodyContext, Inputs, UserError

FAILURES: dict[str, Exception] = {
    "disk_full": OSError(errno.ENOSPC, "No space left on device"),
    "full_snapshot": DiskFullError("The disk of /there is full: free 9 MiB there, then Try again."),
    "no_memory": OutOfMemoryError("Step 4: not even one conversation fits into memory."),
    "no_cpu_memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    "too_long": ContextLengthError("Conversation c1 has 300 tokens, and the student reads 256."),
}
"""What a body may end with after its steps, by mode."""


class ProbeInputs(Inputs):
    steps: int = 4
    seconds: float = 0.0
    mode: str = "count"
    marker: str = ""


class ProbeTask:
    kind = JobKind.TRAIN
    inputs = ProbeInputs

    def __init__(self) -> None:
        self.applied: list[dict[str, Any]] = []

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> ProbeInputs:
        return ProbeInputs.model_validate(spec["probe"])

    def run(self, inputs: ProbeInputs, context: BodyContext) -> dict[str, Any]:
        calls = context.callbacks
        if inputs.marker:
            with Path(inputs.marker).open("a") as out:
                out.write(f"{os.getpid()}\n")
        calls.phase("train")
        if inputs.mode == "user_error":
            raise UserError("The learning rate is not a number.")
        if inputs.mode == "kill_self":
            os.kill(os.getpid(), signal.SIGKILL)
        start = context.snapshots[0][0] if context.snapshots else 0
        if inputs.mode == "fall_back" and context.snapshots:
            start = context.snapshots[-1][0]  # as if the newer ones were damaged
            calls.resumed(start)
        for step in range(start + 1, inputs.steps + 1):
            time.sleep(inputs.seconds)
            calls.metrics(step, {"train/loss": 1.0 / step})
            calls.progress(step, inputs.steps, "steps")
            if step % 2 == 0:
                folder = context.workdir / f"step-{step}"
                folder.mkdir(exist_ok=True)
                calls.snapshot(step, folder, "0" * 64)
            if calls.should_stop() and inputs.mode == "all_or_nothing":
                raise Stopped("A part of it is no result.")
            if calls.should_stop():
                return {"stopped_at": step, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}  # noqa: TID251 - what the supervisor gave
        _fail_late(inputs.mode, context)
        return {"stopped_at": None, "started_from": start}

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None: ...

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        self.applied.append(json.loads(json.dumps(result)))


def _fail_late(mode: str, context: BodyContext) -> None:
    if mode in FAILURES:
        raise FAILURES[mode]
    if mode == "fail_late":
        (context.workdir / "checkpoint").mkdir()
        raise UserError("The disk is full.")


if __name__ == "__main__":
    sys.exit(run_child(ProbeTask()))
