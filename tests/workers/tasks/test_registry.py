"""What a worker has to import before it can carry out a kind of job."""

import subprocess
import sys

from app.specs.jobs import JobKind

PRINTS = "import sys, {module}; {call}; print('torch' in sys.modules, *sorted(sys.modules))"


def loaded(module: str, call: str = "") -> tuple[bool, set[str]]:
    """Return whether torch was loaded by an import (and a call), and all modules that were."""
    code = PRINTS.format(module=module, call=call or "pass")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch, *names = done.stdout.split()
    return torch == "True", set(names)


def test_jobs_on_logs_wait_for_no_torch() -> None:
    torch, _ = loaded(
        "workers.tasks.registry", f"workers.tasks.registry.task_of('{JobKind.IMPORT}')"
    )
    assert not torch


def test_a_gpu_worker_has_its_tasks_before_it_claims_a_job() -> None:
    call = "workers.tasks.registry.import_tasks('gpu')"
    torch, names = loaded("workers.tasks.registry", call)
    assert torch
    assert {f"workers.tasks.{n}" for n in ("train", "precompute", "evaluate", "generate")} <= names
    assert "workers.tasks.ingest" not in names
